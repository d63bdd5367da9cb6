// root = isqrt(floor(D_NORM * 2^52 / w)), w = square_sum * 2^2k with 31 or 32 significant bits (SPEC 5.3).
//
// That is the largest r with r * r * w <= D_NORM * 2^52, found bit by bit from the top, 17 cycles, without divider or
// multiplier: with q = r * w and s = r * r * w at hand, (r + 2^b)^2 * w = s + (q << (b + 1)) + (w << 2b).
// start is heeded while busy is 0; done is 1 for the cycle in which root and k are new, and they stay.
`default_nettype none

module rsqrt #(
    parameter int D_NORM = 512
) (
    input  wire logic        clk,
    input  wire logic        reset,
    input  wire logic        start,
    input  wire logic [47:0] square_sum,  // 1 .. 2^42
    output logic             busy,
    output logic             done,
    output logic [16:0]      root,
    output logic signed [4:0] k
);
  localparam logic [67:0] TARGET = 68'(D_NORM) << 52;

  logic [5:0] length;
  logic signed [4:0] k_next;
  logic [31:0] w_next, w;
  logic [4:0] place;
  logic [48:0] q;  // r * w
  logic [67:0] s, s_next;  // r * r * w

  always_comb begin
    length = 6'd0;
    for (int i = 0; i < 48; i++) if (square_sum[i]) length = 6'(i + 1);
  end

  assign k_next = 5'((7'sd32 - 7'(length)) >>> 1);
  assign w_next = k_next >= 0 ? 32'(square_sum << {k_next, 1'b0}) : 32'(square_sum >> {5'(-k_next), 1'b0});
  assign s_next = s + (68'(q) << (place + 5'd1)) + (68'(w) << {place, 1'b0});

  always_ff @(posedge clk) begin
    done <= 1'b0;
    if (reset) begin
      busy <= 1'b0;
    end else if (!busy) begin
      if (start) begin
        busy <= 1'b1;
        place <= 5'd16;
        w <= w_next;
        k <= k_next;
        root <= 17'd0;
        q <= 49'd0;
        s <= 68'd0;
      end
    end else begin
      if (s_next <= TARGET) begin
        root[place] <= 1'b1;
        q <= q + (49'(w) << place);
        s <= s_next;
      end
      place <= place - 5'd1;
      if (place == 5'd0) begin
        busy <= 1'b0;
        done <= 1'b1;
      end
    end
  end
endmodule

`default_nettype wire
