// Preloaded: from the n-th write call on a file below a folder on, that folder's file system is full.
// Also counts calls, so that a test can let every one of them fail in turn.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long calls, last = LONG_MAX;

void full_disk(const char *path, long writes) {
    strncpy(folder, path, sizeof folder - 1);
    calls = 0;
    last = writes;
}

long full_disk_calls(void) { return calls; }

static int refused(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (strncmp(path, folder, strlen(folder))) return 0;
    if (__atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST) < last) return 0;
    errno = ENOSPC;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    return refused(fd) ? -1 : NEXT(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return refused(fd) ? -1 : NEXT(writev)(fd, parts, count);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    return refused(out) ? -1 : NEXT(copy_file_range)(in, from, out, to, size, flags);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    return refused(out) ? -1 : ((ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(out, in, offset, size);
}

int fsync(int fd) { return refused(fd) ? -1 : NEXT(fsync)(fd); }
