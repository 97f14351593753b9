/* Stands between a program and the C library, and looks at every change of a file below a directory.
 *
 * INTERPOSED_BELOW    the directory, absolute; what is below its `logs` does not count
 * INTERPOSED_PROGRAM  name of the program that is meant, where others inherit the environment
 * INTERPOSED_LOG      file that each change is noted in, as `OPERATION PATH`
 * INTERPOSED_KILL_AT  number of the change, from 1, before which the process kills itself with SIGKILL
 * INTERPOSED_KILLED   file that notes that this has happened; it happens once
 * INTERPOSED_LACKS    operations that file systems lack: `exchange` of two names, `flush` of directories
 *
 * Writes to one file that follow each other are one change.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *below, *log_path, *killed_path, *lacks = "";
static long kill_at, n_changes;
static char last_written[PATH_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void) {
    const char *program = getenv("INTERPOSED_PROGRAM"), *number = getenv("INTERPOSED_KILL_AT");
    if (program && strcmp(program, program_invocation_short_name) != 0) return;
    below = getenv("INTERPOSED_BELOW");
    log_path = getenv("INTERPOSED_LOG");
    killed_path = getenv("INTERPOSED_KILLED");
    if (getenv("INTERPOSED_LACKS")) lacks = getenv("INTERPOSED_LACKS");
    kill_at = number ? atol(number) : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The path that a descriptor or a name relative to one stands for. */
static int resolve(int directory, const char *name, char *path) {
    char link[64], base[PATH_MAX];
    if (name && name[0] == '/') return snprintf(path, PATH_MAX, "%s", name);
    if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return -1;
    base[length] = 0;
    return name ? snprintf(path, PATH_MAX, "%s/%s", base, name) : snprintf(path, PATH_MAX, "%s", base);
}

static void note(const char *operation, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", operation, path);
    long file = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0) return;
    syscall(SYS_write, file, line, length);
    syscall(SYS_close, file);
}

static void die(void) {
    if (killed_path) {
        long file = syscall(SYS_openat, AT_FDCWD, killed_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (file < 0) return;
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void change(const char *operation, int directory, const char *name) {
    char path[PATH_MAX];
    int saved = errno;
    if (!below || resolve(directory, name, path) < 0) { errno = saved; return; }
    size_t length = strlen(below);
    const char *relative = path + length + 1;
    if (strncmp(path, below, length) != 0 || path[length] != '/' || strncmp(relative, "logs/", 5) == 0) {
        errno = saved;
        return;
    }
    pthread_mutex_lock(&lock);
    int goes_on = strcmp(operation, "write") == 0 && strcmp(last_written, relative) == 0;
    snprintf(last_written, sizeof last_written, "%s", strcmp(operation, "write") == 0 ? relative : "");
    if (!goes_on) {
        n_changes++;
        if (n_changes == kill_at) die();
        if (log_path) note(operation, relative);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static int changes_something(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

static mode_t mode_of(int flags, va_list arguments) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(function)                                                                                      \
    int function(const char *name, int flags, ...) {                                                        \
        va_list arguments;                                                                                  \
        va_start(arguments, flags);                                                                         \
        mode_t mode = mode_of(flags, arguments);                                                            \
        va_end(arguments);                                                                                  \
        if (changes_something(flags)) change("open", AT_FDCWD, name);                                       \
        return REAL(function)(name, flags, mode);                                                           \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                                                    \
    int function(int directory, const char *name, int flags, ...) {                                         \
        va_list arguments;                                                                                  \
        va_start(arguments, flags);                                                                         \
        mode_t mode = mode_of(flags, arguments);                                                            \
        va_end(arguments);                                                                                  \
        if (changes_something(flags)) change("open", directory, name);                                      \
        return REAL(function)(directory, name, flags, mode);                                                \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t length) {
    change("write", file, NULL);
    return REAL(write)(file, bytes, length);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    change("write", file, NULL);
    return REAL(writev)(file, parts, count);
}

int ftruncate64(int file, off64_t length) {
    change("truncate", file, NULL);
    return REAL(ftruncate64)(file, length);
}

int rename(const char *from, const char *to) {
    change("rename", AT_FDCWD, to);
    return REAL(rename)(from, to);
}

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned int flags) {
    if (flags && strstr(lacks, "exchange")) {
        errno = EINVAL;
        return -1;
    }
    change("exchange", to_directory, to);
    return REAL(renameat2)(from_directory, from, to_directory, to, flags);
}

int unlink(const char *name) {
    change("remove", AT_FDCWD, name);
    return REAL(unlink)(name);
}

int unlinkat(int directory, const char *name, int flags) {
    change("remove", directory, name);
    return REAL(unlinkat)(directory, name, flags);
}

int rmdir(const char *name) {
    change("remove", AT_FDCWD, name);
    return REAL(rmdir)(name);
}

int mkdir(const char *name, mode_t mode) {
    change("mkdir", AT_FDCWD, name);
    return REAL(mkdir)(name, mode);
}

int fsync(int file) {
    struct stat status;
    if (strstr(lacks, "flush") && fstat(file, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return REAL(fsync)(file);
}
