/* A disk that fails: put before libc (LD_PRELOAD), makes calls on one file fail. bench/recording.py says which, by the environment:
   SHIM_FILE   end of the file's path
   SHIM_CALL   write, fdatasync, ftruncate
   SHIM_AFTER  so many such calls succeed first
   SHIM_TIMES  so many fail then
   SHIM_ERRNO  with this; 0 = slow: 600 ms, and good
   SHIM_SHORT  a failing write takes half of the bytes first
   Each failure is told on standard error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

/* Whether this call is to fail. */
static int struck(const char *call, int fd) {
    static int calls = 0;
    const char *wanted = getenv("SHIM_CALL"), *file = getenv("SHIM_FILE");
    char link[64], path[4096];
    if (!wanted || !file || strcmp(wanted, call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < (ssize_t)strlen(file)) return 0;
    path[n] = 0;
    if (strcmp(path + n - strlen(file), file)) return 0;
    int mine = __sync_fetch_and_add(&calls, 1), after = number("SHIM_AFTER");
    if (mine < after || mine >= after + number("SHIM_TIMES")) return 0;
    dprintf(2, "SHIM %s\n", call);
    if (number("SHIM_ERRNO") == 0) {
        usleep(600000);
        return 0;
    }
    errno = number("SHIM_ERRNO");
    return 1;
}

ssize_t write(int fd, const void *data, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    static int halved = -1;
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (fd == halved) { /* what follows a write that was short: its second half, where the writer asks for it */
        halved = -1;
        errno = number("SHIM_ERRNO");
        return -1;
    }
    if (fd > 2 && struck("write", fd)) {
        if (!number("SHIM_SHORT") || n < 2) return -1;
        halved = fd;
        return real(fd, data, n / 2);
    }
    return real(fd, data, n);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    return struck("fdatasync", fd) ? -1 : real(fd);
}

static int cut(int fd, off_t n) {
    static int (*real)(int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "ftruncate64");
    return struck("ftruncate", fd) ? -1 : real(fd, n);
}

int ftruncate(int fd, off_t n) { return cut(fd, n); }
int ftruncate64(int fd, off_t n) { return cut(fd, n); }
