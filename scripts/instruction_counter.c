/* A plugin of qemu-user (7.2 to 8.x, plugin interface 1) that counts the instructions of the first thread.

   The program asks by a system call that no kernel has, MARK(file): the count so far is written to that file
   as 8 bytes in the order of this machine. The worker's instructions.py is what asks.

   Only the first thread counts: onnxruntime has others in the background whose work depends on the clock. */

#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

enum { MARK = 0x65646765 };

/* The few parts of the interface that are used; distributions do not ship its header. */
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t, uint64_t));

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;

static uint64_t count;

static void executed(unsigned thread, void *instructions)
{
    if (thread == 0)
        count += (uintptr_t)instructions;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned thread, int64_t number, uint64_t file, uint64_t b, uint64_t c,
                   uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)thread, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == MARK && write((int)file, &count, sizeof count) != sizeof count)
        count = 0; /* the reader finds nothing, and says so */
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
