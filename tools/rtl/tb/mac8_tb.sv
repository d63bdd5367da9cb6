// `intsim vectors dot_k` (K products, a multiple of 8) on standard input: K / 8 beats of 8 lanes, then the answer.
module mac8_tb;
  localparam int K = `K;
  localparam int LANES = 8;

  logic clk = 0, first;
  logic signed [31:0] bias, expected, answer;
  logic [K*8-1:0] x, w;
  logic [K*4-1:0] s;
  logic [LANES*8-1:0] x_now, w_now;
  logic [LANES*4-1:0] s_now;

  mac8 #(
      .LANES(LANES)
  ) dut (
      .clk(clk), .enable(1'b1), .first(first), .bias(bias), .x(x_now), .w(w_now), .shift(s_now), .acc(answer)
  );

  initial
    while ($fscanf(32'h8000_0000, "%h %h %h %h %h\n", bias, x, w, s, expected) == 5) begin
      for (int beat = 0; beat < K / LANES; beat++) begin
        first = beat == 0;
        x_now = x[beat*LANES*8+:LANES*8];
        w_now = w[beat*LANES*8+:LANES*8];
        s_now = s[beat*LANES*4+:LANES*4];
        #1 clk = 1;
        #1 clk = 0;
      end
      $display("%h %h %h %h %h %h", bias, x, w, s, expected, answer);
    end
endmodule
