// `intsim vectors rom --operator ...` on standard input.  OPERATOR is its name in the generated package, BUNDLE the
// folder that the package's file names lead into.
`define OF(tail) `OPERATOR``tail
module rom_tb;
  import intsim_pkg::*;
  logic [3:0] index, index_read;
  logic signed [7:0] x, x_read;
  logic [`OF(_OUT_BITS)-1:0] expected, answer;

  rom #(
      .ROMS(`OF(_ROM_ROMS)), .OUT_BITS(`OF(_OUT_BITS)), .FILE({`BUNDLE, "/", `OF(_ROM_FILE)})
  ) dut (
      .index(index), .x(x), .result(answer)
  );

  initial
    while ($fscanf(32'h8000_0000, "%h %h %h\n", index_read, x_read, expected) == 3) begin
      index = index_read;  // assigned, for $fscanf alone wakes nothing in Verilator 5.006
      x = x_read;
      #1 $display("%h %h %h %h", index, x, expected, answer);
    end
endmodule
