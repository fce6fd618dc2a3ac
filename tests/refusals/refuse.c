/* LD_PRELOAD: let the n-th change of a file below one folder fail, or have a signal come just before it.
 *
 * Counted are opening for writing, writing, closing, syncing, truncating, renaming, and making folders: everything by
 * which a program changes files, in whatever language it is written. Removing is never refused: cleaning up must work.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 4096 };
static char root[PATH_MAX];
static long target = -1, seen;
static int error_number, tracked[MOST];

/* kind: an errno; 0 for SIGTERM. n counts from 0; below 0 nothing is refused, only counted. */
void refuse_set(const char *folder, long n, int kind) {
    snprintf(root, sizeof root, "%s", folder);
    target = n;
    seen = 0;
    error_number = kind;
    memset(tracked, 0, sizeof tracked);
}

long refuse_count(void) { return seen; }

static int below(const char *path) {
    char whole[PATH_MAX];
    if (!root[0] || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole)) return 0;
        size_t length = strlen(whole);
        snprintf(whole + length, sizeof whole - length, "/%s", path);
        path = whole;
    }
    return strncmp(path, root, strlen(root)) == 0;
}

/* grows: the change needs room. A full disk stays full; everything else is refused once. */
static int refuse(int grows) {
    long now = __atomic_fetch_add(&seen, 1, __ATOMIC_SEQ_CST);
    if (target < 0 || now < target) return 0;
    if (error_number == 0) {
        if (now == target) kill(getpid(), SIGTERM);
        return 0;
    }
    if (now == target || (error_number == ENOSPC && grows)) {
        errno = error_number;
        return 1;
    }
    return 0;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

static int opened(int fd) {
    if (fd >= 0 && fd < MOST) tracked[fd] = 1;
    return fd;
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        REAL(int, #name, const char *, int, ...); \
        if (!writes(flags) || !below(path)) return real(path, flags, mode); \
        return refuse(1) ? -1 : opened(real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        REAL(int, #name, int, const char *, int, ...); \
        if (!writes(flags) || !below(path)) return real(folder, path, flags, mode); \
        return refuse(1) ? -1 : opened(real(folder, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, #name, const char *, const char *); \
        if (!strpbrk(mode, "wa+") || !below(path)) return real(path, mode); \
        if (refuse(1)) return NULL; \
        FILE *file = real(path, mode); \
        if (file) opened(fileno(file)); \
        return file; \
    }
FOPEN(fopen)
FOPEN(fopen64)

static int is_tracked(int fd) { return fd >= 0 && fd < MOST && tracked[fd]; }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return is_tracked(fd) && refuse(1) ? -1 : real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return is_tracked(fd) && refuse(1) ? -1 : real(fd, parts, count);
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t at) { \
        REAL(ssize_t, #name, int, const void *, size_t, off_t); \
        return is_tracked(fd) && refuse(1) ? -1 : real(fd, data, size, at); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

int close(int fd) {
    REAL(int, "close", int);
    if (!is_tracked(fd)) return real(fd);
    tracked[fd] = 0;
    int refused = refuse(0); /* as close(2) has it: the descriptor is gone all the same */
    int code = errno, result = real(fd);
    if (refused) errno = code;
    return refused ? -1 : result;
}

#define SYNC(name) \
    int name(int fd) { \
        REAL(int, #name, int); \
        return is_tracked(fd) && refuse(0) ? -1 : real(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name) \
    int name(int fd, off_t size) { \
        REAL(int, #name, int, off_t); \
        return is_tracked(fd) && refuse(1) ? -1 : real(fd, size); \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return below(to) && refuse(0) ? -1 : real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return below(to) && refuse(0) ? -1 : real(a, from, b, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return below(path) && refuse(1) ? -1 : real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    return below(path) && refuse(1) ? -1 : real(folder, path, mode);
}
