// One rounding, then one saturation (SPEC section 2): result = sat(value / 2^shift).  Combinational.
//
// shift is -31 .. 31, to the right if positive; ROUNDING is coded as in the generated package: 0 half_up,
// 1 half_even, 2 half_away, 3 floor.  The mode decides from the sign, the first bit that is dropped and whether any
// bit behind it is set, so that no adder is wider than the value.
`default_nettype none

module requantize #(
    parameter int IN_BITS    = 32,
    parameter int OUT_BITS   = 8,
    parameter int OUT_SIGNED = 1,
    parameter int ROUNDING   = 0
) (
    input  wire logic signed [ IN_BITS-1:0] value,
    input  wire logic signed [         5:0] shift,
    output logic             [OUT_BITS-1:0] result
);
  localparam int MOST = 31;  // of a shift
  localparam int WIDE = (IN_BITS > OUT_BITS ? IN_BITS : OUT_BITS) + MOST + 1;
  localparam logic signed [WIDE-1:0] ONE = 1;
  localparam logic signed [WIDE-1:0] HIGH = (ONE <<< (OUT_SIGNED != 0 ? OUT_BITS - 1 : OUT_BITS)) - ONE;
  localparam logic signed [WIDE-1:0] LOW = OUT_SIGNED != 0 ? ~HIGH : '0;

  wire logic signed [WIDE-1:0] wide = WIDE'(value);
  wire logic [5:0] right = shift > 0 ? shift : 6'd0;
  wire logic [5:0] left = shift < 0 ? -shift : 6'd0;
  wire logic signed [WIDE-1:0] floored = wide >>> right;
  wire logic signed [WIDE-1:0] half = right == 0 ? '0 : ONE <<< (right - 6'd1);
  wire logic dropped = |(wide & half);
  wire logic behind = right != 0 && |(wide & (half - ONE));
  wire logic odd = floored[0];
  wire logic negative = value[IN_BITS-1];

  logic up;
  always_comb
    case (ROUNDING)
      0: up = dropped;
      1: up = dropped && (behind || odd);
      2: up = dropped && (behind || !negative);
      default: up = 1'b0;
    endcase

  wire logic signed [WIDE-1:0] exact = shift < 0 ? wide <<< left : up ? floored + ONE : floored;
  assign result = exact > HIGH ? HIGH[OUT_BITS-1:0] : exact < LOW ? LOW[OUT_BITS-1:0] : exact[OUT_BITS-1:0];
endmodule

`default_nettype wire
