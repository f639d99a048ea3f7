/* SPDX-License-Identifier: 0BSD
 * bin2c IN OUT: the bytes of a file as the little-endian 64-bit words of a C array (zeros fill up the last one).
 * Runs on the machine that builds, for compilers whose assembler has no .incbin. */
#include <inttypes.h>
#include <stdio.h>

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: bin2c IN OUT\n");
        return 1;
    }
    FILE *in = fopen(argv[1], "rb");
    FILE *out = in ? fopen(argv[2], "w") : NULL;
    if (in == NULL || out == NULL) {
        perror(in == NULL ? argv[1] : argv[2]);
        return 1;
    }
    unsigned char bytes[8];
    size_t got, column = 0;
    while ((got = fread(bytes, 1, sizeof bytes, in)) > 0) {
        uint64_t word = 0;
        for (size_t i = 0; i < got; ++i) word |= (uint64_t)bytes[i] << (8 * i);
        fprintf(out, "0x%" PRIx64 "u%s", word, ++column % 8 == 0 ? ",\n" : ",");
    }
    fputc('\n', out);
    if (ferror(in) != 0 || fclose(out) != 0) {
        perror(argv[2]);
        return 1;
    }
    fclose(in);
    return 0;
}
