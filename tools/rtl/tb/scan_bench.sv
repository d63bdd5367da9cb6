// Runs the scan of one direction of one layer, channel after channel, on the frames of a bundle, and compares every
// dx, A-bar, b, acc, h, y_acc and y.  The processing element is reset once: frames follow one another with the
// state of the one before still in it.  With STALLS, tokens come with random gaps and results are taken late.
//
// With +dump=DIR what the element gave goes to DIR/0000/TENSOR.hex and so on, for `intsim verify BUNDLE DIR`.
//
// All tables and file names are those of the generated package.
module scan_bench #(
    parameter     NAME       = "",
    parameter int FRAMES     = 1,
    parameter int STALLS     = 1,
    parameter int TOKENS     = 1,
    parameter int CHANNELS   = 1,
    parameter int N          = 16,
    parameter int STATE_BITS = 8,
    parameter int M          = 15,
    parameter int D_BITS     = 24,
    parameter int Y_BITS     = 8,
    parameter int ROUNDING   = 0,
    parameter     BUNDLE     = "",
    parameter     ROM_FILE   = "",
    parameter     A_FILE     = "",
    parameter     D_FILE     = "",
    parameter     DELTA_FILE = "",
    parameter     U_FILE     = "",
    parameter     B_IN_FILE  = "",
    parameter     C_IN_FILE  = "",
    parameter     DX_FILE    = "",
    parameter     ABAR_FILE  = "",
    parameter     B_FILE     = "",
    parameter     ACC_FILE   = "",
    parameter     H_FILE     = "",
    parameter     Y_ACC_FILE = "",
    parameter     Y_FILE     = "",
    // tables of bytes, element 0 lowest
    parameter logic [CHANNELS*8-1:0] A_FRACTION     = '0,
    parameter logic [CHANNELS*8-1:0] B_SHIFT        = '0,
    parameter logic [CHANNELS*8-1:0] Y_SHIFT        = '0,
    parameter logic [TOKENS*8-1:0]   TOKEN_SHIFT    = '0,
    parameter logic [TOKENS*8-1:0]   Y_GROUP        = '0,
    parameter logic [31:0]           Y_GROUP_SHIFTS = '0
) (
    input wire logic clk,
    input wire logic reset,
    input wire int   channels,  // how many of CHANNELS to run
    output logic     done,
    output int       errors
);
  localparam int FLAT = TOKENS * CHANNELS;
  localparam int CUBE = FLAT * N;

  logic [7:0] a_mem[0:CHANNELS*N-1];
  logic [D_BITS-1:0] d_mem[0:CHANNELS-1];
  logic [7:0] delta_mem[0:FRAMES*FLAT-1], u_mem[0:FRAMES*FLAT-1];
  logic [7:0] b_in_mem[0:FRAMES*TOKENS*N-1], c_in_mem[0:FRAMES*TOKENS*N-1];
  logic [15:0] dx_mem[0:FRAMES*FLAT-1];
  logic [M:0] abar_mem[0:FRAMES*CUBE-1];
  logic [30:0] b_mem[0:FRAMES*CUBE-1];
  logic [31:0] acc_mem[0:FRAMES*CUBE-1];
  logic [STATE_BITS-1:0] h_mem[0:FRAMES*CUBE-1];
  logic [31:0] y_acc_mem[0:FRAMES*FLAT-1];
  logic [Y_BITS-1:0] y_mem[0:FRAMES*FLAT-1];

  string path;
  initial begin
    $readmemh({BUNDLE, "/", A_FILE}, a_mem);
    $readmemh({BUNDLE, "/", D_FILE}, d_mem);
    for (int i = 0; i < FRAMES; i++) begin
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, DELTA_FILE);
      $readmemh(path, delta_mem, i * FLAT, (i + 1) * FLAT - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, U_FILE);
      $readmemh(path, u_mem, i * FLAT, (i + 1) * FLAT - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, B_IN_FILE);
      $readmemh(path, b_in_mem, i * TOKENS * N, (i + 1) * TOKENS * N - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, C_IN_FILE);
      $readmemh(path, c_in_mem, i * TOKENS * N, (i + 1) * TOKENS * N - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, DX_FILE);
      $readmemh(path, dx_mem, i * FLAT, (i + 1) * FLAT - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, ABAR_FILE);
      $readmemh(path, abar_mem, i * CUBE, (i + 1) * CUBE - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, B_FILE);
      $readmemh(path, b_mem, i * CUBE, (i + 1) * CUBE - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, ACC_FILE);
      $readmemh(path, acc_mem, i * CUBE, (i + 1) * CUBE - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, H_FILE);
      $readmemh(path, h_mem, i * CUBE, (i + 1) * CUBE - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, Y_ACC_FILE);
      $readmemh(path, y_acc_mem, i * FLAT, (i + 1) * FLAT - 1);
      path = $sformatf("%s/images/%04d/%s", BUNDLE, i, Y_FILE);
      $readmemh(path, y_mem, i * FLAT, (i + 1) * FLAT - 1);
    end
  end

  logic [N*8-1:0] a, b_in, c_in;
  logic [D_BITS-1:0] d;
  logic [7:0] fraction, b_shift, y_shift, delta, u, token_shift, group;
  logic in_valid, in_first, out_ready;
  wire in_ready, out_valid;
  wire [N*STATE_BITS-1:0] h;
  wire [31:0] y_acc;
  wire [Y_BITS-1:0] y;

  scan_pe #(
      .N(N), .STATE_BITS(STATE_BITS), .M(M), .D_BITS(D_BITS), .Y_BITS(Y_BITS), .ROUNDING(ROUNDING),
      .ROM_FILE({BUNDLE, "/", ROM_FILE})
  ) pe (
      .clk(clk), .reset(reset),
      .a(a), .a_fraction(fraction[4:0]), .d(d), .b_shift(b_shift), .y_shift(y_shift),
      .in_valid(in_valid), .in_ready(in_ready), .in_first(in_first), .delta(delta), .u(u), .b_in(b_in), .c_in(c_in),
      .token_shift(token_shift[3:0]), .y_group(group[3:0]),
      .out_valid(out_valid), .out_ready(out_ready), .h(h), .y_acc(y_acc), .y(y)
  );

  // The same gaps and stalls in every simulator: xorshift.
  int unsigned gaps = 32'h1234_5678, late = 32'h9abc_def1;
  function automatic int unsigned after(input int unsigned x);
    after = x ^ (x << 13);
    after = after ^ (after >> 17);
    after = after ^ (after << 5);
  endfunction

  // Driver: signals change at the falling edge.
  int taken;
  initial begin
    in_valid = 0;
    wait (!reset);
    for (int c = 0; c < channels; c++) begin
      @(negedge clk);
      for (int n = 0; n < N; n++) a[n*8+:8] = a_mem[c*N+n];
      d = d_mem[c];
      fraction = A_FRACTION[8*c+:8];
      b_shift = B_SHIFT[8*c+:8];
      y_shift = Y_SHIFT[8*c+:8];
      for (int i = 0; i < FRAMES; i++)
        for (int t = 0; t < TOKENS; t++) begin
          gaps = after(gaps);
          if (STALLS != 0 && gaps[1:0] == 0) repeat (32'(gaps[4:2])) @(negedge clk);
          in_valid = 1;
          in_first = t == 0;
          delta = delta_mem[(i*TOKENS+t)*CHANNELS+c];
          u = u_mem[(i*TOKENS+t)*CHANNELS+c];
          for (int n = 0; n < N; n++) begin
            b_in[n*8+:8] = b_in_mem[(i*TOKENS+t)*N+n];
            c_in[n*8+:8] = c_in_mem[(i*TOKENS+t)*N+n];
          end
          token_shift = TOKEN_SHIFT[8*t+:8];
          group = Y_GROUP_SHIFTS[8*Y_GROUP[8*t+:2]+:8];
          do @(posedge clk); while (!in_ready);
          @(negedge clk);
          in_valid = 0;
          {delta, u, b_in, c_in, token_shift, group} = 'x;  // a DUT that reads on would show it
        end
      while (taken < (c + 1) * FRAMES * TOKENS) @(negedge clk);  // the constants stand until the last result
    end
  end

  initial begin
    out_ready = 0;
    forever begin
      @(negedge clk);
      late = after(late);
      out_ready = STALLS == 0 || late[1:0] != 0;
    end
  end

  // Monitor and checker: signals are read at the rising edge.
  localparam int PATIENCE = 1000 + 10 * N;  // cycles without a result
  int c, i, t, n, flat, waited;
  task automatic check(input string what, input int state, input logic [31:0] actual, input logic [31:0] expected);
    if (actual !== expected) begin
      errors++;
      if (errors <= 10)
        $display("%0s.%0s[frame %0d, token %0d, channel %0d, state %0d]: expected %h, actual %h", NAME, what, i, t, c,
                 state, expected, actual);
    end
  endtask

  logic [15:0] dx_got[0:FRAMES*FLAT-1];
  logic [M:0] abar_got[0:FRAMES*CUBE-1];
  logic [30:0] b_got[0:FRAMES*CUBE-1];
  logic [31:0] acc_got[0:FRAMES*CUBE-1];
  logic [STATE_BITS-1:0] h_got[0:FRAMES*CUBE-1];
  logic [31:0] y_acc_got[0:FRAMES*FLAT-1];
  logic [Y_BITS-1:0] y_got[0:FRAMES*FLAT-1];
  string dump;
  int file;

`define WRITE(NAME, memory, SIZE) \
      file = $fopen($sformatf("%s/%04d/%s", dump, k, NAME), "w"); \
      for (int j = k * SIZE; j < (k + 1) * SIZE; j++) $fdisplay(file, "%h", memory[j]); \
      $fclose(file);

  task write_dumps;
    for (int k = 0; k < FRAMES; k++) begin
      `WRITE(DX_FILE, dx_got, FLAT)
      `WRITE(ABAR_FILE, abar_got, CUBE)
      `WRITE(B_FILE, b_got, CUBE)
      `WRITE(ACC_FILE, acc_got, CUBE)
      `WRITE(H_FILE, h_got, CUBE)
      `WRITE(Y_ACC_FILE, y_acc_got, FLAT)
      `WRITE(Y_FILE, y_got, FLAT)
    end
  endtask

  initial begin
    {errors, taken, c, i, t, n, waited} = '0;
    done = 0;
    wait (!reset);
    while (c < channels && waited <= PATIENCE) begin
      @(posedge clk);
      waited++;
      flat = (i * TOKENS + t) * CHANNELS + c;
      if (pe.running) begin
        check("abar", n, 32'(pe.abar), 32'(abar_mem[flat*N+n]));
        check("b", n, 32'(pe.b[30:0]), 32'(b_mem[flat*N+n]));
        check("acc", n, pe.acc, acc_mem[flat*N+n]);
        abar_got[flat*N+n] = pe.abar;
        b_got[flat*N+n] = pe.b[30:0];
        acc_got[flat*N+n] = pe.acc;
        n++;
      end
      if (out_valid && out_ready) begin
        for (int s = 0; s < N; s++) begin
          check("h", s, 32'(h[s*STATE_BITS+:STATE_BITS]), 32'(h_mem[flat*N+s]));
          h_got[flat*N+s] = h[s*STATE_BITS+:STATE_BITS];
        end
        check("dx", 0, {16'd0, pe.dx}, 32'(dx_mem[flat]));
        dx_got[flat] = pe.dx;
        y_acc_got[flat] = y_acc;
        y_got[flat] = y;
        check("y_acc", 0, y_acc, y_acc_mem[flat]);
        check("y", 0, 32'(y), 32'(y_mem[flat]));
        check("steps", 0, n, N);
        n = 0;
        taken++;
        waited = 0;
        t++;
        if (t == TOKENS) begin
          t = 0;
          i++;
        end
        if (i == FRAMES) begin
          i = 0;
          c++;
        end
      end
    end
    if (waited > PATIENCE) begin
      errors++;
      $display("%0s: no result in %0d cycles", NAME, PATIENCE);
    end
    if ($value$plusargs("dump=%s", dump)) write_dumps;
    done = 1;
    $display("%0s: %0d channels x %0d frames x %0d tokens x %0d states, %0d wrong integers", NAME, channels, FRAMES,
             TOKENS, N, errors);
  end
endmodule
