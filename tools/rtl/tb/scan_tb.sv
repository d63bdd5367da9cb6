// Both directions of one layer.  LAYER is its name in the generated package (LAYERS_0_MIXER), BUNDLE a bundle with
// FRAMES images; +channels=N runs fewer channels.
`define OF(part, side, tail) `LAYER``part``side``tail
`define BENCH(instance_name, side, SIDE, groups, group_shifts, finished, wrong) \
  scan_bench #( \
      .NAME(side), .FRAMES(`FRAMES), .STALLS(`STALLS), \
      .TOKENS(`OF(_SCAN, SIDE, _H_TOKENS)), .CHANNELS(`OF(_SCAN, SIDE, _H_CHANNELS)), \
      .N(`OF(_SCAN, SIDE, _H_STATES)), .STATE_BITS(`OF(_SCAN, SIDE, _H_BITS)), \
      .M(`OF(_SCAN, SIDE, _ABAR_FRACTION)), .D_BITS(`OF(_SCAN, SIDE, _D_BITS)), .Y_BITS(`OF(_SCAN, SIDE, _Y_BITS)), \
      .ROUNDING(ROUNDING), .BUNDLE(`BUNDLE), .ROM_FILE(EXP2_ROM_FILE), \
      .A_FILE(`OF(_SCAN, SIDE, _A_FILE)), .D_FILE(`OF(_SCAN, SIDE, _D_FILE)), \
      .DELTA_FILE(`OF(_SOFTPLUS, SIDE, _OUT_FILE)), .U_FILE(`OF(_SILU, SIDE, _OUT_FILE)), \
      .B_IN_FILE(`OF(_X_PROJ, SIDE, _B_FILE)), .C_IN_FILE(`OF(_X_PROJ, SIDE, _C_FILE)), \
      .DX_FILE(`OF(_SCAN, SIDE, _DX_FILE)), .ABAR_FILE(`OF(_SCAN, SIDE, _ABAR_FILE)), \
      .B_FILE(`OF(_SCAN, SIDE, _B_FILE)), .ACC_FILE(`OF(_SCAN, SIDE, _ACC_FILE)), \
      .H_FILE(`OF(_SCAN, SIDE, _H_FILE)), \
      .Y_ACC_FILE(`OF(_SCAN, SIDE, _Y_ACC_FILE)), .Y_FILE(`OF(_SCAN, SIDE, _Y_FILE)), \
      .A_FRACTION(`OF(_SCAN, SIDE, _A_FRACTION_TABLE)), .B_SHIFT(`OF(_SCAN, SIDE, _B_SHIFT_TABLE)), \
      .Y_SHIFT(`OF(_SCAN, SIDE, _Y_SHIFT_TABLE)), .TOKEN_SHIFT(`OF(_SCAN, SIDE, _STATE_TOKEN_SHIFT_TABLE)), \
      .Y_GROUP(groups), .Y_GROUP_SHIFTS(32'(group_shifts)) \
  ) instance_name (.clk(clk), .reset(reset), .channels(channels), .done(finished), .errors(wrong));

module scan_tb;
  import intsim_pkg::*;
  logic clk = 0, reset = 1;
  int channels, forward_errors, backward_errors;
  wire forward_done, backward_done;

  // Where y has no groups the package has no table of them.
`ifdef PLAIN_FORWARD
  `BENCH(forward, "scan", , '0, '0, forward_done, forward_errors)
`else
  `BENCH(forward, "scan", , `OF(_SCAN, , _Y_GROUP_TABLE), `OF(_SCAN, , _Y_GROUP_SHIFTS), forward_done, forward_errors)
`endif
`ifdef PLAIN_BACKWARD
  `BENCH(backward, "scan_b", _B, '0, '0, backward_done, backward_errors)
`else
  `BENCH(backward, "scan_b", _B, `OF(_SCAN, _B, _Y_GROUP_TABLE), `OF(_SCAN, _B, _Y_GROUP_SHIFTS), backward_done,
         backward_errors)
`endif

  initial begin
    if (!$value$plusargs("channels=%d", channels)) channels = `OF(_SCAN, , _H_CHANNELS);
    repeat (3) @(negedge clk);
    reset = 0;
    while (!(forward_done && backward_done)) @(negedge clk);
    if (forward_errors + backward_errors != 0) $fatal(1, "the scan differs from the golden vectors");
    $finish(0);
  end

  always #1 clk = !clk;
endmodule
