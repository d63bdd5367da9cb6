// A-bar = 2^-(p / 2^fraction) as an unsigned fraction of M bits, 0 .. 2^M (SPEC 5.7).  Combinational.
//
// The exponent with 19 fraction bits: its integer part is a shift, 7 bits index the ROM, 12 interpolate.
`default_nettype none

module exp2 #(
    parameter int M        = 15,
    parameter int ROUNDING = 0,
    parameter     ROM_FILE = ""
) (
    input  wire logic [15:0] p,
    input  wire logic [ 4:0] fraction,
    output logic      [ M:0] abar
);
  logic [31:0] entries[0:128];
  initial $readmemh(ROM_FILE, entries);

  wire logic [34:0] t = fraction <= 5'd19 ? 35'(p) << (5'd19 - fraction) : 35'(p) >> (fraction - 5'd19);
  wire logic [15:0] whole = t[34:19];
  wire logic [7:0] index = {1'b0, t[18:12]};
  wire logic [11:0] rest = t[11:0];

  wire logic [31:0] here = entries[index];
  wire logic [31:0] next = entries[index+8'd1];
  wire logic [31:0] v = (here << 12) - (here - next) * 32'(rest);  // at most 2^29
  wire logic signed [5:0] shift = whole > 16'(2 + M) ? 6'sd31 : 6'(16'(29 - M) + whole);

  requantize #(
      .IN_BITS(32), .OUT_BITS(M + 1), .OUT_SIGNED(0), .ROUNDING(ROUNDING)
  ) rounding (
      .value(v), .shift(shift), .result(abar)
  );
endmodule

`default_nettype wire
