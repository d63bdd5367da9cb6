// `intsim vectors requantize` on standard input, the same lines with the DUT's answer on standard output.
// There is a DUT for each rounding mode FIRST .. LAST; +rounding=0..3 picks one.
module requantize_tb;
  logic signed [31:0] v, v_read;
  logic signed [5:0] s, s_read;
  logic [7:0] expected;
  wire [31:0] answers;
  int rounding;

  for (genvar mode = `FIRST; mode <= `LAST; mode++) begin : modes
    requantize #(
        .IN_BITS(32), .OUT_BITS(8), .ROUNDING(mode)
    ) dut (
        .value(v), .shift(s), .result(answers[8*mode+:8])
    );
  end

  initial begin
    if (!$value$plusargs("rounding=%d", rounding)) rounding = 0;
    while ($fscanf(32'h8000_0000, "%h %h %h\n", v_read, s_read, expected) == 3) begin
      v = v_read;  // assigned, for $fscanf alone wakes nothing in Verilator 5.006
      s = s_read;
      #1 $display("%h %h %h %h", v, s, expected, answers[8*rounding+:8]);
    end
  end
endmodule
