// A multiply-accumulate of LANES products a cycle, each shifted left by its group's shift (SPEC 5.4).
//
// acc <= (first ? bias : acc) + sum over lanes of (x * w) << shift.  A Program's proof of widths says that ACC_BITS
// hold every partial sum of a row as well as the whole, so nothing is checked here.
`default_nettype none

module mac8 #(
    parameter int LANES    = 8,
    parameter int X_BITS   = 8,
    parameter int W_BITS   = 8,
    parameter int ACC_BITS = 32
) (
    input  wire logic                       clk,
    input  wire logic                       enable,
    input  wire logic                       first,
    input  wire logic signed [ACC_BITS-1:0] bias,
    input  wire logic [LANES*X_BITS-1:0]    x,      // lane 0 in the least significant bits
    input  wire logic [LANES*W_BITS-1:0]    w,
    input  wire logic [LANES*4-1:0]         shift,
    output logic signed [ACC_BITS-1:0]      acc
);
  logic signed [ACC_BITS-1:0] sum;

  always_comb begin
    sum = '0;
    for (int i = 0; i < LANES; i++)
      sum = sum + ((ACC_BITS'($signed(x[i*X_BITS+:X_BITS])) * ACC_BITS'($signed(w[i*W_BITS+:W_BITS])))
                   <<< shift[i*4+:4]);
  end

  always_ff @(posedge clk) if (enable) acc <= (first ? bias : acc) + sum;
endmodule

`default_nettype wire
