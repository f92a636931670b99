/* linux310 COMMAND...: runs the command as if on Linux 3.10. System calls that came later give ENOSYS, and flags that
 * came later are refused as that kernel refuses them. The numbers are those of x86-64; finit_module, 313, was the last.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSE(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
/* Where the call is `number`: refuse it if its argument is at least `first`, or has one of `bits`. Five steps each. */
#define AT_LEAST(number, argument, first, error) \
    LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3), LOAD(args[argument]), \
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, first, 0, 1), REFUSE(error)
#define WITH_BITS(number, argument, bits, error) \
    LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3), LOAD(args[argument]), \
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1), REFUSE(error)
/* The same for an option of the level SOL_SOCKET: seven steps. */
#define SOCKET_OPTION(number, first) \
    LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 5), LOAD(args[1]), \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOL_SOCKET, 0, 3), LOAD(args[2]), \
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, first, 0, 1), REFUSE(ENOPROTOOPT)

int main(int count, char **words)
{
    struct sock_filter filter[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        REFUSE(ENOSYS),
        LOAD(nr),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 314, 0, 1),
        REFUSE(ENOSYS),
        AT_LEAST(SYS_madvise, 2, 18, EINVAL),           /* 17, MADV_DODUMP, is 3.4's; MADV_FREE came with 4.5 */
        AT_LEAST(SYS_fcntl, 1, 1033, EINVAL),           /* F_ADD_SEALS: 3.17 */
        WITH_BITS(SYS_open, 1, 020000000, EOPNOTSUPP),  /* O_TMPFILE: 3.11 */
        WITH_BITS(SYS_openat, 2, 020000000, EOPNOTSUPP),
        WITH_BITS(SYS_mremap, 3, 4, EINVAL),            /* MREMAP_DONTUNMAP: 5.7 */
        SOCKET_OPTION(SYS_setsockopt, 46),              /* 45, SO_SELECT_ERR_QUEUE, is 3.10's */
        SOCKET_OPTION(SYS_getsockopt, 46),
        ALLOW,
    };
    /* prctl's later operations: PR_SET_VMA is "SVMA", and those from 41 (PR_SET_THP_DISABLE, 3.15) up. */
    struct sock_filter options[] = {AT_LEAST(SYS_prctl, 0, 41, EINVAL), ALLOW};
    struct sock_fprog programs[] = {
        {sizeof options / sizeof *options, options},
        {sizeof filter / sizeof *filter, filter},
    };
    if (count < 2)
        return 2;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        perror("PR_SET_NO_NEW_PRIVS");
        return 1;
    }
    for (int i = 0; i < 2; i++)
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &programs[i]) != 0) {
            perror("PR_SET_SECCOMP");
            return 1;
        }
    setenv("LD_PRELOAD", "/uname310.so", 1); /* uname() has to agree: OpenSSL asks it whether getrandom exists */
    execv(words[1], words + 1);
    perror(words[1]);
    return 1;
}
