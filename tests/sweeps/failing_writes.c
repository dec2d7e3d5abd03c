/* Loaded before the C library: the N-th write, or flush to disk, below a folder fails once.
 *
 * WRITES_BELOW   the folder (part of the path of the file that is written)
 * WRITES_FAIL_AT the number of the one that fails; 0: none
 * WRITES_ERRNO   the error it fails with
 * WRITES_COUNT   a file that is told how many there have been
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long seen;

static int fails(int descriptor)
{
    const char *below = getenv("WRITES_BELOW"), *count = getenv("WRITES_COUNT");
    const char *at = getenv("WRITES_FAIL_AT"), *error = getenv("WRITES_ERRNO");
    char link[64], path[4096], text[32];
    ssize_t length;
    long number;
    int kept = errno, told;

    if (below == NULL)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length <= 0)
        return 0;
    path[length] = 0;
    if (strstr(path, below) == NULL)
        return 0;
    number = __sync_add_and_fetch(&seen, 1);
    if (count != NULL) {
        static ssize_t (*real)(int, const void *, size_t);
        if (real == NULL)
            real = dlsym(RTLD_NEXT, "write");
        told = open(count, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (told >= 0) {
            length = real(told, text, snprintf(text, sizeof text, "%ld", number));
            close(told);
        }
        errno = kept;
    }
    if (at == NULL || number != atol(at))
        return 0;
    errno = error ? atoi(error) : EIO;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (real == NULL) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int d, const void *b, size_t n) { REAL(write); return fails(d) ? -1 : real(d, b, n); }
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { REAL(pwrite); return fails(d) ? -1 : real(d, b, n, o); }
ssize_t pwrite64(int d, const void *b, size_t n, off64_t o) { REAL(pwrite64); return fails(d) ? -1 : real(d, b, n, o); }
size_t fwrite(const void *b, size_t s, size_t n, FILE *f) { REAL(fwrite); return fails(fileno(f)) ? 0 : real(b, s, n, f); }
int fsync(int d) { REAL(fsync); return fails(d) ? -1 : real(d); }
