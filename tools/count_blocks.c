/* SPDX-License-Identifier: 0BSD
 * A plugin of QEMU (version 1 of its interface): how often each piece of a program runs between two calls of its function
 * `mark`. Given mark=ADDRESS and out=FILE it writes, at each call, a line "<first> <last> <count>" for every piece that ran
 * since the call before (addresses of its first and last instruction in hexadecimal), then a line "mark". */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is used of that interface; Debian does not package its header. */
typedef uint64_t plugin_id;
typedef struct qemu_plugin_tb plugin_piece;
typedef struct qemu_plugin_insn plugin_instruction;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, plugin_piece *));
void qemu_plugin_register_vcpu_tb_exec_inline(plugin_piece *piece, int add_u64, void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_tb_exec_cb(plugin_piece *piece, void (*call)(unsigned, void *), int no_registers, void *data);
size_t qemu_plugin_tb_n_insns(const plugin_piece *piece);
plugin_instruction *qemu_plugin_tb_get_insn(const plugin_piece *piece, size_t index);
uint64_t qemu_plugin_insn_vaddr(const plugin_instruction *instruction);
int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);
extern int qemu_plugin_version;
int qemu_plugin_version = 1;

enum { MOST = 1 << 20 };
static struct {
    uint64_t count, first, last;
} pieces[MOST];
static size_t used;
static uint64_t mark;
static FILE *out;

static void write_counts(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    for (size_t i = 0; i < used; i++) {
        if (pieces[i].count == 0) continue;
        fprintf(out, "%" PRIx64 " %" PRIx64 " %" PRIu64 "\n", pieces[i].first, pieces[i].last, pieces[i].count);
        pieces[i].count = 0;
    }
    fputs("mark\n", out);
    fflush(out);
}

static void translated(plugin_id id, plugin_piece *piece) {
    (void)id;
    if (used == MOST) abort();
    const size_t i = used++;
    pieces[i].first = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(piece, 0));
    pieces[i].last = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(piece, qemu_plugin_tb_n_insns(piece) - 1));
    qemu_plugin_register_vcpu_tb_exec_inline(piece, 0, &pieces[i].count, 1);
    if (pieces[i].first == mark) qemu_plugin_register_vcpu_tb_exec_cb(piece, write_counts, 0, NULL);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "mark=", 5) == 0) mark = strtoull(argv[i] + 5, NULL, 0);
        if (strncmp(argv[i], "out=", 4) == 0) out = fopen(argv[i] + 4, "w");
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return mark != 0 && out != NULL ? 0 : -1;
}
