// One channel of the selective scan (SPEC 5.7): a token in, its N states in N cycles, y out.
//
// The channel's constants are held still while it runs.  A token is taken when in_valid and in_ready are both 1;
// in_first marks the first of a sequence, whatever the state still holds from the one before.  The result stands
// until out_ready takes it.  All of a state's arithmetic is one combinational path, plain to read; a fast design
// would put registers behind exp2, the product and the rounding, which changes no integer.
`default_nettype none

module scan_pe #(
    parameter int N          = 16,
    parameter int STATE_BITS = 8,
    parameter int M          = 15,  // fraction bits of A-bar
    parameter int D_BITS     = 24,
    parameter int Y_BITS     = 8,
    parameter int ROUNDING   = 0,
    parameter     ROM_FILE   = ""
) (
    input  wire logic                     clk,
    input  wire logic                     reset,
    // constants of the channel
    input  wire logic [N*8-1:0]           a,
    input  wire logic [4:0]               a_fraction,
    input  wire logic signed [D_BITS-1:0] d,
    input  wire logic signed [7:0]        b_shift,
    input  wire logic signed [7:0]        y_shift,
    // a token
    input  wire logic                     in_valid,
    output logic                          in_ready,
    input  wire logic                     in_first,
    input  wire logic [7:0]               delta,
    input  wire logic signed [7:0]        u,
    input  wire logic [N*8-1:0]           b_in,
    input  wire logic [N*8-1:0]           c_in,
    input  wire logic [3:0]               token_shift,
    input  wire logic [3:0]               y_group,
    // its result
    output logic                          out_valid,
    input  wire logic                     out_ready,
    output logic [N*STATE_BITS-1:0]       h,
    output logic signed [31:0]            y_acc,
    output logic [Y_BITS-1:0]             y
);
  localparam int COUNT = N > 1 ? $clog2(N) : 1;
  localparam logic signed [31:0] B_LIMIT = 32'sh3FFFFFFF;

  logic running, first;
  logic [COUNT-1:0] n;
  logic [7:0] delta_t;
  logic signed [7:0] u_t;
  logic [N*8-1:0] b_t, c_t;
  logic [3:0] shift_t, shift_before, group_t;
  logic signed [31:0] sum;

  // One state's arithmetic.

  logic [M:0] abar;
  exp2 #(
      .M(M), .ROUNDING(ROUNDING), .ROM_FILE(ROM_FILE)
  ) exponential (
      .p(16'(delta_t) * 16'(a[n*8+:8])), .fraction(a_fraction), .abar(abar)
  );

  wire logic signed [15:0] dx = 16'(16'($signed({1'b0, delta_t})) * 16'(u_t));
  wire logic signed [23:0] product = 24'(dx) * 24'($signed(b_t[n*8+:8]));
  wire logic signed [5:0] b_right = 6'(b_shift + 8'(shift_t));  // a Program keeps it within -31 .. 31
  logic signed [30:0] aligned;
  requantize #(
      .IN_BITS(24), .OUT_BITS(31), .ROUNDING(ROUNDING)
  ) alignment (
      .value(product), .shift(b_right), .result(aligned)
  );
  wire logic signed [31:0] b = 32'(aligned) < -B_LIMIT ? -B_LIMIT : 32'(aligned);

  wire logic signed [5:0] step = 6'(shift_t) - 6'(shift_before);
  logic signed [STATE_BITS-1:0] rescaled, h_next;
  requantize #(
      .IN_BITS(STATE_BITS), .OUT_BITS(STATE_BITS), .ROUNDING(ROUNDING)
  ) rescaling (
      .value(h[n*STATE_BITS+:STATE_BITS]), .shift(step), .result(rescaled)
  );
  wire logic signed [STATE_BITS-1:0] h_before = first ? '0 : rescaled;

  wire logic signed [31:0] acc = 32'($signed({1'b0, abar})) * 32'(h_before) + b;
  requantize #(
      .IN_BITS(32), .OUT_BITS(STATE_BITS), .ROUNDING(ROUNDING)
  ) state (
      .value(acc), .shift(6'(M)), .result(h_next)
  );

  // y, when the last state is in the sum.

  assign y_acc = 32'(d) * 32'(u_t) + (sum <<< shift_t);
  wire logic signed [5:0] y_right = 6'(y_shift + 8'(group_t));
  requantize #(
      .IN_BITS(32), .OUT_BITS(Y_BITS), .ROUNDING(ROUNDING)
  ) output_rounding (
      .value(y_acc), .shift(y_right), .result(y)
  );

  assign in_ready = !running && !out_valid;

  always_ff @(posedge clk) begin
    if (reset) begin
      running <= 1'b0;
      out_valid <= 1'b0;
    end else if (running) begin
      h[n*STATE_BITS+:STATE_BITS] <= h_next;
      sum <= sum + 32'(h_next) * 32'($signed(c_t[n*8+:8]));
      n <= n + 1'b1;
      if (n == COUNT'(N - 1)) begin
        running <= 1'b0;
        out_valid <= 1'b1;
      end
    end else if (out_valid) begin
      if (out_ready) out_valid <= 1'b0;
    end else if (in_valid) begin
      running <= 1'b1;
      n <= '0;
      sum <= 32'sd0;
      first <= in_first;
      shift_before <= shift_t;
      {delta_t, u_t, b_t, c_t, shift_t, group_t} <= {delta, u, b_in, c_in, token_shift, y_group};
    end
  end
endmodule

`default_nettype wire
