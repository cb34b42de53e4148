/* Rows from shard files into memory, a whole batch in one call, each summed while it is in cache.
 *
 * Does what cache/portable_read.py does, faster in two ways: Python's lock is let go once a batch and
 * not at every row, and the crc32c of a row comes from the processor's instruction and from carry-less
 * multiplication at the same time, which are different units. cache/native_library.py loads it with ctypes;
 * where it was not built, or the processor lacks an instruction, the portable reader works alone.
 *
 * Plain C11 for x86-64, without Python's headers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    VERSION = 3,            /* of this interface; native_library.py asks for it */
    PIECE = 1 << 19,        /* bytes of one call to the kernel: still in a core's own cache when summed */
    MOST_ROWS = 128,        /* rows of one call, two pieces of memory each */
    LONGEST_GAP = 128,      /* bytes between rows that are read along */
    CRC_BYTES = 4,
};

/* Where a row lies. gap: bytes from its end to the next row's start, the first four of them its crc32c; 0 where
 * none lies beside it. recorded: the crc32c that somebody wrote down for it; negative where nobody did. */
struct place {
    int64_t descriptor;
    int64_t gap;
    int64_t offset;
    int64_t recorded;
};

/* Memory of one array's rows, one after the other. */
struct memory {
    unsigned char *start;
    int64_t row_bytes;
};

/* The same rows of several arrays, all in one piece of memory of 64-bit numbers: where the first array's rows lie, then
 * the second's; the arrays' memory; which row of the memory each row fills (order); then room for the checksums, first
 * those found, then those that lie beside the rows; and one number for what went wrong. */
struct batch {
    const struct place *places;
    const struct memory *arrays;
    const int64_t *order;
    uint32_t *found;
    uint32_t *stored;
    int64_t *wrong;
    size_t rows;
    size_t total;
};

static struct batch batch_in(int64_t *numbers, size_t rows, size_t arrays) {
    struct batch batch = {.rows = rows, .total = rows * arrays};
    batch.places = (const struct place *)numbers;
    batch.arrays = (const struct memory *)(batch.places + batch.total);
    batch.order = (const int64_t *)(batch.arrays + arrays);
    batch.found = (uint32_t *)(batch.order + rows);
    batch.stored = batch.found + batch.total;
    batch.wrong = (int64_t *)(batch.order + rows) + batch.total;
    return batch;
}

/* ---- crc32c ------------------------------------------------------------------------------------------
 *
 * Polynomials over GF(2) with their bits reversed, as crc32c has them: the highest bit is x^0. The message
 * is cut into parts that do not wait for each other: STREAMS that the crc32 instruction takes a word at a
 * time (three, because its result comes after three cycles), and one that LANES vectors of 256 bits fold,
 * each over the next (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel
 * 2009). A part's sum is then carried over what follows it by a multiplication with a power of x.
 */
enum { STREAMS = 3, STREAM_WORDS = 4, LANES = 2 };
enum { STREAM_BYTES = 8 * STREAM_WORDS, FOLDED_BYTES = 32 * LANES };

#define POLYNOMIAL UINT32_C(0x82F63B78) /* x^32 modulo the polynomial of Castagnoli */
#define UNROLLED _Pragma("GCC unroll 8")
#define WITH_CRC32 __attribute__((target("sse4.2,pclmul")))
#define WITH_FOLDING __attribute__((target("sse4.2,pclmul,avx2,vpclmulqdq")))

static uint64_t word_at(const unsigned char *data) {
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* a b x^32, so that x^(n - 32) for a carries b over n bits, and two such powers multiply to a third. */
WITH_CRC32 static uint32_t multiply(uint32_t a, uint32_t b) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)a), _mm_cvtsi32_si128((int)b), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product) << 1);
}

/* The power that carries a sum over words of eight bytes, at least one. */
WITH_CRC32 static uint32_t power_over(size_t words) {
    uint32_t square = POLYNOMIAL; /* x^(64 - 32) */
    while (!(words & 1)) {
        square = multiply(square, square);
        words >>= 1;
    }
    uint32_t power = square;
    while (words >>= 1) {
        square = multiply(square, square);
        if (words & 1) power = multiply(power, square);
    }
    return power;
}

WITH_CRC32 static uint32_t sum_rest(uint64_t sum, const unsigned char *data, size_t bytes) {
    for (; bytes >= 8; data += 8, bytes -= 8) sum = _mm_crc32_u64(sum, word_at(data));
    for (; bytes; bytes--) sum = _mm_crc32_u8((uint32_t)sum, *data++);
    return (uint32_t)sum;
}

WITH_CRC32 static void sum_streams(uint64_t sums[STREAMS], const unsigned char *data, size_t length) {
    UNROLLED for (size_t word = 0; word < STREAM_WORDS; word++)
        UNROLLED for (size_t stream = 0; stream < STREAMS; stream++)
            sums[stream] = _mm_crc32_u64(sums[stream], word_at(data + stream * length + 8 * word));
}

/* The sums of the streams, each `length` bytes, as one. */
WITH_CRC32 static uint32_t join_streams(const uint64_t sums[STREAMS], uint32_t power) {
    uint32_t sum = (uint32_t)sums[0];
    for (int stream = 1; stream < STREAMS; stream++) sum = multiply(sum, power) ^ (uint32_t)sums[stream];
    return sum;
}

/* Powers hang on a row's length alone, and rows of the same length come one after the other. */
struct powers {
    size_t rounds;
    uint32_t over_stream;
    uint32_t over_folded;
};

WITH_CRC32 static struct powers powers_for(size_t rounds) {
    static _Thread_local struct powers last;
    if (last.rounds != rounds) {
        last.rounds = rounds;
        last.over_stream = power_over(rounds * STREAM_WORDS);
        last.over_folded = power_over(rounds * FOLDED_BYTES / 8);
    }
    return last;
}

WITH_CRC32 static uint32_t sum_with_crc32(uint32_t sum, const unsigned char *data, size_t bytes) {
    size_t rounds = bytes / (STREAMS * STREAM_BYTES), length = rounds * STREAM_BYTES;
    if (rounds > 1) {
        uint64_t sums[STREAMS] = {sum};
        for (size_t done = 0; done < length; done += STREAM_BYTES) sum_streams(sums, data + done, length);
        sum = join_streams(sums, powers_for(rounds).over_stream);
        data += STREAMS * length;
        bytes -= STREAMS * length;
    }
    return sum_rest(sum, data, bytes);
}

WITH_FOLDING static uint32_t sum_with_folding(uint32_t sum, const unsigned char *data, size_t bytes) {
    size_t rounds = bytes / (STREAMS * STREAM_BYTES + FOLDED_BYTES), length = rounds * STREAM_BYTES;
    if (rounds > 1) {
        /* What carries the halves of 128 bits over FOLDED_BYTES: x^575 and x^511, one less than the distance
         * because a product of reversed polynomials lies one bit too low. */
        _Static_assert(FOLDED_BYTES == 64, "these powers are for 512 bits");
        const long long first_over = 0x1c19243bLL << 32, second_over = 0x75bba45bLL << 32;
        const __m256i over = _mm256_set_epi64x(second_over, first_over, second_over, first_over);
        const unsigned char *folded = data + STREAMS * length;
        uint64_t sums[STREAMS] = {sum};
        __m256i lanes[LANES];
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = _mm256_loadu_si256((const __m256i *)(folded + 32 * lane));
        for (size_t round = 1; round < rounds; round++) {
            folded += FOLDED_BYTES;
            UNROLLED for (int lane = 0; lane < LANES; lane++) {
                __m256i first = _mm256_clmulepi64_epi128(lanes[lane], over, 0x00);
                __m256i second = _mm256_clmulepi64_epi128(lanes[lane], over, 0x11);
                __m256i next = _mm256_loadu_si256((const __m256i *)(folded + 32 * lane));
                lanes[lane] = _mm256_xor_si256(_mm256_xor_si256(first, second), next);
            }
            sum_streams(sums, data + (round - 1) * STREAM_BYTES, length);
        }
        sum_streams(sums, data + (rounds - 1) * STREAM_BYTES, length);
        struct powers powers = powers_for(rounds);
        /* What is left of the lanes has the remainder of all that was folded into them. */
        uint32_t rest = sum_rest(0, (const unsigned char *)lanes, sizeof lanes);
        sum = multiply(join_streams(sums, powers.over_stream), powers.over_folded) ^ rest;
        data += rounds * (STREAMS * STREAM_BYTES + FOLDED_BYTES);
        bytes -= rounds * (STREAMS * STREAM_BYTES + FOLDED_BYTES);
    }
    return sum_rest(sum, data, bytes);
}

/* The fastest way that this processor has: 2 with folding, 1 with the crc32 instruction, 0 none. */
int row_reads_fastest_way(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul")) return 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq") ? 2 : 1;
}

/* previous: the crc32c of what comes before the bytes. */
static uint32_t sum_of(const unsigned char *data, size_t bytes, uint32_t previous, int way) {
    return ~(way == 2 ? sum_with_folding : sum_with_crc32)(~previous, data, bytes);
}

/* ---- reading ----------------------------------------------------------------------------------------- */

static ssize_t read_at(int64_t descriptor, const struct iovec *pieces, int count, int64_t offset, int wait) {
#ifdef RWF_NOWAIT
    if (!wait) return preadv2((int)descriptor, pieces, count, offset, RWF_NOWAIT);
#else
    (void)wait;
#endif
    return preadv((int)descriptor, pieces, count, offset);
}

/* Fill all pieces; 0, or -1 with *wrong: an errno, EAGAIN where not all is in memory, 0 at a file's end. */
static int fill(int64_t descriptor, struct iovec *pieces, int count, int64_t offset, int wait, int64_t *wrong) {
    for (;;) {
        ssize_t got = read_at(descriptor, pieces, count, offset, wait);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            *wrong = got < 0 ? errno : 0;
            return -1;
        }
        offset += got;
        for (; count && (size_t)got >= pieces->iov_len; pieces++, count--) got -= (ssize_t)pieces->iov_len;
        if (!count) return 0;
        if (!wait) {
            *wrong = EAGAIN;
            return -1;
        }
        pieces->iov_base = (char *)pieces->iov_base + got;
        pieces->iov_len -= (size_t)got;
    }
}

static unsigned char *memory_of(const struct batch *batch, size_t row) {
    const struct memory *array = batch->arrays + row / batch->rows;
    return array->start + batch->order[row % batch->rows] * array->row_bytes;
}

static int64_t bytes_of(const struct batch *batch, size_t row) {
    return batch->arrays[row / batch->rows].row_bytes;
}

static int read_long_row(const struct batch *batch, size_t row, int wait, int way) {
    const struct place *place = batch->places + row;
    unsigned char *memory = memory_of(batch, row);
    int64_t bytes = bytes_of(batch, row);
    uint32_t sum = 0;
    for (int64_t start = 0; start < bytes; start += PIECE) {
        int64_t left = bytes - start, size = left < PIECE ? left : PIECE;
        struct iovec pieces[2] = {{memory + start, (size_t)size}, {batch->stored + row, CRC_BYTES}};
        int count = place->gap && size == left ? 2 : 1;
        if (fill(place->descriptor, pieces, count, place->offset + start, wait, batch->wrong)) return -1;
        sum = sum_of(memory + start, (size_t)size, sum, way);
    }
    batch->found[row] = sum;
    if (!place->gap) batch->stored[row] = sum;
    return 0;
}

/* How many rows from one on lie one after the other and are read at once. */
static size_t rows_together(const struct batch *batch, size_t first) {
    const struct place *places = batch->places + first;
    size_t most = batch->rows - first % batch->rows, together = 1;
    int64_t row_bytes = bytes_of(batch, first), bytes = row_bytes;
    if (most > MOST_ROWS) most = MOST_ROWS;
    for (; together < most; together++) {
        const struct place *before = places + together - 1, *next = places + together;
        bytes += before->gap + row_bytes;
        if (next->descriptor != before->descriptor || before->gap > LONGEST_GAP || bytes > PIECE ||
            next->offset != before->offset + row_bytes + before->gap)
            break;
    }
    return together;
}

static int read_short_rows(const struct batch *batch, size_t first, size_t count, int wait, int way) {
    const struct place *places = batch->places + first;
    size_t row_bytes = (size_t)bytes_of(batch, first);
    struct iovec pieces[2 * MOST_ROWS];
    unsigned char beside[MOST_ROWS][LONGEST_GAP];
    int used = 0;
    for (size_t i = 0; i < count; i++) {
        pieces[used++] = (struct iovec){memory_of(batch, first + i), row_bytes};
        if (places[i].gap)
            pieces[used++] = (struct iovec){beside[i], i + 1 < count ? (size_t)places[i].gap : CRC_BYTES};
    }
    if (fill(places->descriptor, pieces, used, places->offset, wait, batch->wrong)) return -1;
    for (size_t i = 0; i < count; i++) {
        uint32_t sum = sum_of(memory_of(batch, first + i), row_bytes, 0, way);
        batch->found[first + i] = batch->stored[first + i] = sum;
        if (places[i].gap) memcpy(batch->stored + first + i, beside[i], CRC_BYTES);
    }
    return 0;
}

static int all_fit(const struct batch *batch) {
    for (size_t row = 0; row < batch->total; row++) {
        int64_t recorded = batch->places[row].recorded;
        uint32_t found = batch->found[row];
        if (found != batch->stored[row] || (recorded >= 0 && recorded != found)) return 0;
    }
    return 1;
}

/* Read a batch's rows in their order, from `done` on; give how many are there then. Stops at the first that cannot be
 * read whole: the last number is then an errno, EAGAIN where wait is 0 and a row is not all in memory, or 0 where a
 * file ends too early. When all are there it is 1 where a checksum does not fit, else 0. */
size_t row_reads_read(int64_t *numbers, size_t rows, size_t arrays, size_t done, int wait, int way) {
    const struct batch batch = batch_in(numbers, rows, arrays);
    while (done < batch.total) {
        int is_long = bytes_of(&batch, done) > PIECE;
        size_t together = is_long ? 1 : rows_together(&batch, done);
        int failed = is_long ? read_long_row(&batch, done, wait, way)
                             : read_short_rows(&batch, done, together, wait, way);
        if (failed) return done;
        done += together;
    }
    *batch.wrong = !all_fit(&batch);
    return done;
}

uint32_t row_reads_crc32c(const unsigned char *data, size_t bytes, uint32_t previous, int way) {
    return sum_of(data, bytes, previous, way);
}

int row_reads_version(void) { return VERSION; }
