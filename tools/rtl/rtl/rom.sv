// SiLU or softplus: one of ROMS tables of 256 entries, read from a constant of the bundle (SPEC 5.6).  Combinational.
`default_nettype none

module rom #(
    parameter int ROMS     = 1,
    parameter int OUT_BITS = 8,
    parameter     FILE     = ""
) (
    input  wire logic [3:0]          index,
    input  wire logic signed [7:0]   x,
    output logic      [OUT_BITS-1:0] result
);
  logic [OUT_BITS-1:0] entries[0:ROMS*256-1];
  initial $readmemh(FILE, entries);

  localparam int ADDRESS_BITS = $clog2(ROMS * 256);

  // Entry 0 belongs to -128: the code with its sign bit inverted is the address.
  assign result = entries[ADDRESS_BITS'({index, ~x[7], x[6:0]})];
endmodule

`default_nettype wire
