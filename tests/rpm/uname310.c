/* A library to preload: uname() tells of EL7's kernel. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

int uname(struct utsname *name)
{
    int status = syscall(SYS_uname, name);
    if (status == 0)
        strcpy(name->release, "3.10.0-1160.el7.x86_64");
    return status;
}
