// `intsim vectors exp2` on standard input.  There is a DUT for each rounding mode FIRST .. LAST; +rounding=0..3
// picks one.
module exp2_tb;
  import intsim_pkg::*;
  localparam int M = ABAR_FRACTION;
  logic [15:0] p, p_read;
  logic [4:0] f, f_read;
  logic [M:0] expected;
  wire [4*(M+1)-1:0] answers;
  int rounding;

  for (genvar mode = `FIRST; mode <= `LAST; mode++) begin : modes
    exp2 #(
        .M(M), .ROUNDING(mode), .ROM_FILE({`BUNDLE, "/", EXP2_ROM_FILE})
    ) dut (
        .p(p), .fraction(f), .abar(answers[(M+1)*mode+:M+1])
    );
  end

  initial begin
    if (!$value$plusargs("rounding=%d", rounding)) rounding = 0;
    while ($fscanf(32'h8000_0000, "%h %h %h\n", p_read, f_read, expected) == 3) begin
      p = p_read;  // assigned, for $fscanf alone wakes nothing in Verilator 5.006
      f = f_read;
      #1 $display("%h %h %h %h", p, f, expected, answers[(M+1)*rounding+:M+1]);
    end
  end
endmodule
