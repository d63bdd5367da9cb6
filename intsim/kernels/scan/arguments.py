# mypy: allow-untyped-defs
"""The arguments of a scan (Scan.arguments()) by their places, and what its kernels are limited to."""

BLOCK = 16  # channels in a block, 0 behind the last
LIMIT = (1 << 30) - 1  # b is clamped to -LIMIT .. LIMIT
# Largest left shift of dx * B that cannot reach LIMIT: 255 * 128 * 128 * 2^8 < 2^30 - 1.
HARMLESS_LEFT = 8
LARGEST_LEFT = 30  # of all kernels but scan_traced
LARGEST_RIGHT = 16  # of scan_avx512 and scan_avx2
LARGEST_RIGHT_BYTES = 7  # of scan_avx2 for states of 8 bits
LEAST_M = 8  # of scan_avx2, for states of 8 bits
SOME = 32  # tokens at a time of scan_avx512 and scan_avx2
TABLE = (256 + 5) * 16  # from channel to channel in the table of -A-bar: not all rows of a code in one set of the cache
SHIFTS = 8 * 16  # int32 that these two know of each shift of a token; see their `write_shifts`
TRACED, LANES, AVX2, AVX512 = range(4)  # which kernel
INNER = ("dx", "abar", "b", "acc", "h", "y_acc")

(
    DELTA, U, B, C, Y, DX, ABAR, B_OUT, ACC, H, Y_ACC, IMAGES, TOKENS, CHANNELS, STATES, METHOD, CLAMPS, A, FRACTION,
    ROM, PACKED, BYTE_ROM, D, B_SHIFT, TOKEN_SHIFT, LEAST_LEFT, MOST_LEFT, Y_SHIFT, Y_ROW_SHIFT, M, MODE, H_LOW, H_HIGH,
    Y_LOW, Y_HIGH, ABAR_SIZE, H_SIZE, NARROW, RIGHTS, BIT_PLACES,
    ENTRY_BYTES,
) = range(41)  # fmt: skip
ARGUMENTS = ENTRY_BYTES + 1
