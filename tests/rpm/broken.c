/* A library that must never be loaded: it ends the process that does. */
#include <unistd.h>

__attribute__((constructor)) static void refuse(void)
{
    static const char text[] = "a library of the host was loaded\n";
    if (write(2, text, sizeof text - 1))
        _exit(66);
    _exit(66);
}
