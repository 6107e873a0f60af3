/* Counts the file system steps of a process below one folder, and can end it, or refuse, at the N-th.
 *
 * Loaded with LD_PRELOAD, so that it sees what Python, Rust (safetensors) and C++ (torch) write alike;
 * only writes through mmap and a kernel's own copies go past it. A step is a call that changes what
 * lies on the disk: opening for writing, a write, a sync, a rename, an unlink, a folder made or removed.
 * The clock that programs read can be moved, too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_HALFWAY, REFUSE };

static char prefix[PATH_MAX];
static size_t prefix_length;
static long at;
static int mode, refusal, told = -1;
static volatile long steps;
static volatile int refused;
static volatile long moved; /* seconds */

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* Arm: from now on steps below `folder` count from 1. */
void steps_arm(const char *folder, long n, int what, int error, int descriptor) {
    prefix_length = 0;
    snprintf(prefix, sizeof prefix, "%s", folder);
    at = n;
    mode = what;
    refusal = error;
    told = descriptor;
    steps = 0;
    refused = 0;
    prefix_length = strlen(prefix);
}

long steps_taken(void) { return steps; }
void steps_move_clock(long seconds) { moved = seconds; }

static int below(const char *path) {
    return prefix_length && strncmp(path, prefix, prefix_length) == 0 &&
           (path[prefix_length] == '/' || path[prefix_length] == 0);
}

static void place(int folder, const char *path, char *out) {
    char base[2 * PATH_MAX], link[64];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (folder == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, base, PATH_MAX);
    base[n < 0 ? 0 : n] = 0;
    if (path[0]) strncat(strncat(base, "/", 2), path, sizeof base - strlen(base) - 1);
    snprintf(out, PATH_MAX, "%.*s", PATH_MAX - 1, base);
}

static void tell(char sign, const char *what, const char *path) {
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "\n%c %ld %s %s\n", sign, steps, what, path + prefix_length);
    if (told >= 0) syscall(SYS_write, told, line, (size_t)n);
}

static void die(const char *what, const char *path) {
    tell('K', what, path);
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

static void die_at(const char *what, int folder, const char *path) {
    char full[PATH_MAX];
    place(folder, path, full);
    die(what, full);
}

/* One step. Gives 0: do it; 1: do half of it, then call `die`; -1: refuse it, errno is set. */
static int step(int folder, const char *path, const char *what, int takes_room) {
    char full[PATH_MAX];
    if (!prefix_length) return 0;
    int before = errno;
    place(folder, path, full);
    errno = before;
    if (!below(full)) return 0;
    long n = __atomic_add_fetch(&steps, 1, __ATOMIC_SEQ_CST);
    if (mode == KILL_BEFORE && n == at) die(what, full);
    if (mode == KILL_HALFWAY && n == at) return 1;
    if (mode == REFUSE && n >= at && (takes_room || refusal == EROFS)) {
        if (!__atomic_exchange_n(&refused, 1, __ATOMIC_SEQ_CST)) tell('R', what, full);
        errno = refusal;
        return -1;
    }
    return 0;
}

/* Steps that have no middle: killed halfway, they are done, and nothing after them. */
#define DO(folder, path, what, room, call)                         \
    do {                                                           \
        int go = step(folder, path, what, room);                   \
        if (go < 0) return -1;                                     \
        __typeof__(call) given = call;                             \
        if (go > 0) die_at("after " what, folder, path);           \
        return given;                                              \
    } while (0)

static int changes(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0; }

static int opened(int folder, const char *path, int flags, mode_t rights) {
    if (!changes(flags)) return (int)syscall(SYS_openat, folder, path, flags, rights);
    DO(folder, path, "open", flags & O_CREAT,
       (int)syscall(SYS_openat, folder, path, flags, rights));
}

#define RIGHTS(last)                           \
    mode_t rights = 0;                         \
    if (flags & (O_CREAT | O_TMPFILE)) {       \
        va_list rest;                          \
        va_start(rest, last);                  \
        rights = (mode_t)va_arg(rest, int);    \
        va_end(rest);                          \
    }

int open(const char *path, int flags, ...) {
    RIGHTS(flags)
    return opened(AT_FDCWD, path, flags, rights);
}
int open64(const char *path, int flags, ...) {
    RIGHTS(flags)
    return opened(AT_FDCWD, path, flags | O_LARGEFILE, rights);
}
int openat(int folder, const char *path, int flags, ...) {
    RIGHTS(flags)
    return opened(folder, path, flags, rights);
}
int openat64(int folder, const char *path, int flags, ...) {
    RIGHTS(flags)
    return opened(folder, path, flags | O_LARGEFILE, rights);
}
int creat(const char *path, mode_t rights) {
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, rights);
}

FILE *fopen(const char *path, const char *how) {
    int go = strpbrk(how, "wa+") ? step(AT_FDCWD, path, "open", 1) : 0;
    if (go < 0) return NULL;
    FILE *given = REAL(fopen)(path, how);
    if (go > 0) die_at("after open", AT_FDCWD, path);
    return given;
}
FILE *fopen64(const char *path, const char *how) { return fopen(path, how); }

static ssize_t wrote(int file, const void *data, size_t size, off_t where, int placed) {
    int go = step(file, "", "write", 1);
    size_t own = go > 0 ? size / 2 : size;
    ssize_t given = -1;
    if (go >= 0)
        given = placed ? syscall(SYS_pwrite64, file, data, own, where)
                       : syscall(SYS_write, file, data, own);
    if (go > 0) die_at("half of a write to", file, "");
    return given;
}

ssize_t write(int file, const void *data, size_t size) { return wrote(file, data, size, 0, 0); }
ssize_t pwrite(int file, const void *data, size_t size, off_t where) {
    return wrote(file, data, size, where, 1);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t where) {
    return wrote(file, data, size, where, 1);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    int go = step(file, "", "write", 1);
    if (go < 0) return -1;
    if (go > 0) {
        syscall(SYS_write, file, parts[0].iov_base, parts[0].iov_len / 2);
        die_at("half of a write to", file, "");
    }
    return syscall(SYS_writev, file, parts, count);
}
ssize_t sendfile(int to, int from, off_t *where, size_t size) {
    int go = step(to, "", "write", 1);
    if (go < 0) return -1;
    ssize_t given = syscall(SYS_sendfile, to, from, where, go > 0 ? size / 2 : size);
    if (go > 0) die_at("half of a copy to", to, "");
    return given;
}
ssize_t sendfile64(int to, int from, off64_t *where, size_t size) {
    return sendfile(to, from, where, size);
}

int ftruncate(int file, off_t size) {
    DO(file, "", "truncate", 1, (int)syscall(SYS_ftruncate, file, size));
}
int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }
int fsync(int file) { DO(file, "", "sync", 0, (int)syscall(SYS_fsync, file)); }
int fdatasync(int file) { DO(file, "", "sync", 0, (int)syscall(SYS_fdatasync, file)); }

int rename(const char *from, const char *to) {
    DO(AT_FDCWD, to, "rename", 0, (int)syscall(SYS_rename, from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    DO(b, to, "rename", 0, (int)syscall(SYS_renameat2, a, from, b, to, 0));
}
int unlink(const char *path) {
    DO(AT_FDCWD, path, "unlink", 0, (int)syscall(SYS_unlink, path));
}
int unlinkat(int folder, const char *path, int flags) {
    DO(folder, path, "unlink", 0, (int)syscall(SYS_unlinkat, folder, path, flags));
}
int mkdir(const char *path, mode_t rights) {
    DO(AT_FDCWD, path, "mkdir", 1, (int)syscall(SYS_mkdir, path, rights));
}
int mkdirat(int folder, const char *path, mode_t rights) {
    DO(folder, path, "mkdir", 1, (int)syscall(SYS_mkdirat, folder, path, rights));
}
int rmdir(const char *path) { DO(AT_FDCWD, path, "rmdir", 0, (int)syscall(SYS_rmdir, path)); }
int link(const char *from, const char *to) {
    DO(AT_FDCWD, to, "link", 1, (int)syscall(SYS_link, from, to));
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    DO(b, to, "link", 1, (int)syscall(SYS_linkat, a, from, b, to, flags));
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int given = (int)syscall(SYS_clock_gettime, clock, time);
    if (!given && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += moved;
    return given;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    int given = (int)syscall(SYS_gettimeofday, time, zone);
    if (!given) time->tv_sec += moved;
    return given;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
