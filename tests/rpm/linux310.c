/* linux310 COMMAND...: runs the command as if on Linux 3.10.
 *
 * All system calls that came later give ENOSYS: by syscalls(2), 3.14's sched_setattr (314) is the first, and finit_module
 * (313, of 3.8) was the last before it. Of older calls, the table refuses the operations and flags that came later and that
 * 3.10 refused, with its error, for the calls that servers and their libraries make; it leaves out those that need
 * privileges (mount, bpf, ptrace, fanotify), NUMA, and the requests of ioctl. Three things no filter can show: flags that
 * 3.10 ignores (MAP_FIXED_NOREPLACE is a hint there, CLONE_PIDFD and MSG_ZEROCOPY are nothing), what stands in memory
 * (EPOLLEXCLUSIVE), and files that it does not have in /proc and /sys. The numbers are those of x86-64.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FIRST_LATER_CALL 314
#define ANY (-1)
#define ALL 0xffffffffu

/* Refuse the call where first <= (argument & mask) <= last; of socket options, only those of this level. */
static const struct rule {
    int call, level, argument;
    unsigned mask, first, last;
    int error;
} rules[] = {
    /* O_TMPFILE (3.11) is O_DIRECTORY to an older kernel, and a folder is not opened for writing: open(2). */
    {SYS_open, ANY, 1, 020000000, 1, ALL, EISDIR},
    {SYS_openat, ANY, 2, 020000000, 1, ALL, EISDIR},
    {SYS_fcntl, ANY, 1, ALL, 36, 38, EINVAL},           /* F_OFD_*: 3.15 */
    {SYS_fcntl, ANY, 1, ALL, 1027, 1028, EINVAL},       /* F_DUPFD_QUERY: 6.10 */
    {SYS_fcntl, ANY, 1, ALL, 1033, ALL, EINVAL},        /* F_ADD_SEALS: 3.17 */
    {SYS_fallocate, ANY, 1, ~3u, 1, ALL, EOPNOTSUPP},   /* FALLOC_FL_COLLAPSE_RANGE, ZERO_RANGE: 3.15 */
    {SYS_pipe2, ANY, 1, O_EXCL, 1, ALL, EINVAL},        /* O_NOTIFICATION_PIPE: 5.8 */
    {SYS_mmap, ANY, 3, 15, 3, 15, EINVAL},              /* MAP_SHARED_VALIDATE: 4.15; MAP_DROPPABLE: 6.11 */
    {SYS_mremap, ANY, 3, 4, 1, ALL, EINVAL},            /* MREMAP_DONTUNMAP: 5.7 */
    {SYS_madvise, ANY, 2, ALL, 8, 8, EINVAL},           /* MADV_FREE: 4.5 */
    {SYS_madvise, ANY, 2, ALL, 18, 99, EINVAL},         /* MADV_WIPEONFORK: 4.14; 17, MADV_DODUMP, is 3.4's */
    {SYS_madvise, ANY, 2, ALL, 102, ALL, EINVAL},       /* 100 and 101 are hardware's */
    {SYS_mlockall, ANY, 0, 4, 1, ALL, EINVAL},          /* MCL_ONFAULT: 4.4 */
    /* FUTEX_LOCK_PI2 (5.14), and FUTEX_WAIT by the clock CLOCK_REALTIME (4.5); 128 and 256 are flags. */
    {SYS_futex, ANY, 1, ~(128u | 256u), 13, ALL, ENOSYS},
    {SYS_futex, ANY, 1, ~128u, 256, 256, ENOSYS},
    {SYS_waitid, ANY, 0, ALL, 3, ALL, EINVAL},          /* P_PIDFD: 5.4 */
    {SYS_unshare, ANY, 0, 0x02000080, 1, ALL, EINVAL},  /* CLONE_NEWCGROUP: 4.6; CLONE_NEWTIME: 5.6 */
    {SYS_timerfd_create, ANY, 0, ALL, 2, ALL, EINVAL},  /* CLOCK_BOOTTIME: 3.15 */
    {SYS_prctl, ANY, 0, ALL, 41, ALL, EINVAL},          /* PR_SET_THP_DISABLE: 3.15; PR_SET_VMA: 5.17 */
    {SYS_arch_prctl, ANY, 0, ALL, 0x1005, ALL, EINVAL}, /* ARCH_GET_CPUID: 4.12 */
    {SYS_socket, ANY, 0, ALL, 41, ALL, EAFNOSUPPORT},   /* AF_VSOCK, 40, is 3.9's */
    {SYS_getsockopt, SOL_SOCKET, 2, ALL, 46, ALL, ENOPROTOOPT}, /* SO_BUSY_POLL: 3.11 */
    {SYS_setsockopt, SOL_SOCKET, 2, ALL, 46, ALL, ENOPROTOOPT},
    {SYS_getsockopt, IPPROTO_TCP, 2, ALL, 25, ALL, ENOPROTOOPT}, /* TCP_NOTSENT_LOWAT: 3.12 */
    {SYS_setsockopt, IPPROTO_TCP, 2, ALL, 25, ALL, ENOPROTOOPT},
    {SYS_getsockopt, IPPROTO_IP, 2, ALL, 23, 31, ENOPROTOOPT}, /* IP_BIND_ADDRESS_NO_PORT: 4.2 */
    {SYS_setsockopt, IPPROTO_IP, 2, ALL, 23, 31, ENOPROTOOPT},
    {SYS_getsockopt, IPPROTO_UDP, 2, ALL, 101, ALL, ENOPROTOOPT}, /* UDP_NO_CHECK6_TX: 3.16; UDP_SEGMENT: 4.18 */
    {SYS_setsockopt, IPPROTO_UDP, 2, ALL, 101, ALL, ENOPROTOOPT},
};

#define RULES (sizeof rules / sizeof *rules)
static struct sock_filter filter[8 + 9 * RULES];
static unsigned short length;

static void step(unsigned short code, unsigned value, unsigned char if_true, unsigned char if_false)
{
    filter[length++] = (struct sock_filter){code, if_true, if_false, value};
}

static void load(unsigned offset)
{
    step(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
}

static void refuse(int error)
{
    step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error, 0, 0);
}

static void write_filter(void)
{
    load(offsetof(struct seccomp_data, arch));
    step(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    refuse(ENOSYS);
    load(offsetof(struct seccomp_data, nr));
    step(BPF_JMP | BPF_JGE | BPF_K, FIRST_LATER_CALL, 0, 1);
    refuse(ENOSYS);
    for (const struct rule *rule = rules; rule < rules + RULES; rule++) {
        int has_level = rule->level != ANY;
        load(offsetof(struct seccomp_data, nr));
        step(BPF_JMP | BPF_JEQ | BPF_K, rule->call, 0, has_level ? 7 : 5);
        if (has_level) {
            load(offsetof(struct seccomp_data, args[1]));
            step(BPF_JMP | BPF_JEQ | BPF_K, rule->level, 0, 5);
        }
        load(offsetof(struct seccomp_data, args) + 8 * rule->argument);
        step(BPF_ALU | BPF_AND | BPF_K, rule->mask, 0, 0);
        step(BPF_JMP | BPF_JGE | BPF_K, rule->first, 0, 2);
        step(BPF_JMP | BPF_JGT | BPF_K, rule->last, 1, 0);
        refuse(rule->error);
    }
    step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
}

int main(int count, char **words)
{
    if (count < 2)
        return 2;
    write_filter();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        perror("PR_SET_NO_NEW_PRIVS");
        return 1;
    }
    struct sock_fprog program = {length, filter};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("PR_SET_SECCOMP");
        return 1;
    }
    setenv("LD_PRELOAD", "/uname310.so", 1); /* uname() has to agree: OpenSSL asks it whether getrandom exists */
    execv(words[1], words + 1);
    perror(words[1]);
    return 1;
}
