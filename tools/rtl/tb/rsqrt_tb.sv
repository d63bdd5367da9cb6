// `intsim vectors rsqrt` for D_NORM, a name of the generated package, on standard input.
module rsqrt_tb;
  import intsim_pkg::*;
  logic clk = 0, reset, start;
  logic [47:0] square_sum, square_sum_read;
  logic [16:0] expected, root;
  logic signed [4:0] expected_k, k;
  wire busy, done;

  rsqrt #(
      .D_NORM(`D_NORM)
  ) dut (
      .clk(clk), .reset(reset), .start(start), .square_sum(square_sum), .busy(busy), .done(done), .root(root), .k(k)
  );

  task tick;
    #1 clk = 1;
    #1 clk = 0;
  endtask

  initial begin
    start = 0;
    reset = 1;
    tick;
    reset = 0;
    while ($fscanf(32'h8000_0000, "%h %h %h\n", square_sum_read, expected, expected_k) == 3) begin
      square_sum = square_sum_read;  // assigned, for $fscanf alone wakes nothing in Verilator 5.006
      start = 1;
      tick;
      start = 0;
      repeat (64) if (!done) tick;
      $display("%h %h %h %h %h", square_sum, expected, expected_k, root, k);
    end
  end
endmodule
