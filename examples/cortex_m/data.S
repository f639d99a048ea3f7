/* SPDX-License-Identifier: 0BSD
 * Files that are linked in: the golden vectors, and the bytes of a picture (height x width x channels). */
    .section .rodata
    .macro file name, path
    .global \name, \name\()_end
    .balign 8
\name:
    .incbin "\path"
\name\()_end:
    .endm

    file golden_file, GOLDEN
    file picture_file, PICTURE
