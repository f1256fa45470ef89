// A slow disk, as a library to be preloaded: calls that touch files below SLOW_DISK take as long as on a worn network
// disk. SLOW_DISK_BYTES: bytes a second; SLOW_DISK_MS: milliseconds of every call; SLOW_DISK_SYNC_MS: of an fsync.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static double number(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text ? atof(text) : otherwise;
}

static void wait_seconds(double seconds) {
    struct timespec left = {(time_t)seconds, (long)((seconds - (long)seconds) * 1e9)};
    nanosleep(&left, NULL);
}

static int below(const char *path) {
    const char *folder = getenv("SLOW_DISK");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_slow(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static void slow(int file, double bytes) {
    if (is_slow(file)) wait_seconds(number("SLOW_DISK_MS", 5) / 1e3 + bytes / number("SLOW_DISK_BYTES", 1e6));
}

static void slow_path(const char *path) {
    if (below(path)) wait_seconds(number("SLOW_DISK_MS", 5) / 1e3);
}

static void slow_sync(int file) {
    if (is_slow(file)) wait_seconds(number("SLOW_DISK_SYNC_MS", 300) / 1e3);
}

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

#define TRANSFER(name, pointer)                                         \
    ssize_t name(int file, pointer data, size_t size) {                 \
        slow(file, (double)size);                                       \
        return NEXT(ssize_t, #name, int, pointer, size_t)(file, data, size); \
    }
TRANSFER(write, const void *)

#define TRANSFER_AT(name, pointer)                                      \
    ssize_t name(int file, pointer data, size_t size, off_t at) {       \
        slow(file, (double)size);                                       \
        return NEXT(ssize_t, #name, int, pointer, size_t, off_t)(file, data, size, at); \
    }
TRANSFER_AT(pwrite, const void *)
TRANSFER_AT(pwrite64, const void *)
TRANSFER_AT(pread, void *)
TRANSFER_AT(pread64, void *)

ssize_t read(int file, void *data, size_t size) {
    ssize_t done = NEXT(ssize_t, "read", int, void *, size_t)(file, data, size);
    if (done > 0) slow(file, (double)done);
    return done;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    double size = 0;
    for (int i = 0; i < count; i++) size += (double)parts[i].iov_len;
    slow(file, size);
    return NEXT(ssize_t, "writev", int, const struct iovec *, int)(file, parts, count);
}

#define SYNC(name)                                                      \
    int name(int file) {                                                \
        slow_sync(file);                                                \
        return NEXT(int, #name, int)(file);                             \
    }
SYNC(fsync)
SYNC(fdatasync)

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                                   \
        slow_path(path);                                                \
        return NEXT(int, #name, const char *, int, ...)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define ON_PATH(name)                                                   \
    int name(const char *path) {                                        \
        slow_path(path);                                                \
        return NEXT(int, #name, const char *)(path);                    \
    }
ON_PATH(unlink)
ON_PATH(rmdir)

int rename(const char *from, const char *to) {
    slow_path(to);
    return NEXT(int, "rename", const char *, const char *)(from, to);
}
