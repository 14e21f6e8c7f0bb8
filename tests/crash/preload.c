/* Copyright (c) contributors to the remotefs.storage collection
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * LD_PRELOAD: counts every call that changes something under one directory, in all processes of a run together, and acts
 * at one of them: kills processes, lets the call fail, or records what is done (for the power-loss model).
 *
 * A process takes part once it has mapped the control file (interposer.py writes it; the layouts must agree): Python by
 * calling crash_attach(), every program that it starts by finding a file "control" beside the library in LD_PRELOAD.
 * Everything below goes to the kernel by syscall(), so that nothing here meets its own wrappers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE, TRUNCATE, FALLOCATE, COPY, FSYNC, CREATE, LINK, RENAME, UNLINK, MKDIR, ATTRIBUTE, OPEN_TO_WRITE, OPEN_TO_READ, READ, STATUS };
enum role { PYTHON = 1, TOOL = 2 };
enum flag { SERIAL = 1, RECORD = 2, STICKY = 4 };

#define MAGIC 0x43524153u
#define PATH_SIZE 1024
#define MOST_PROCESSES 64

struct control {
  uint32_t magic, flags;
  uint32_t counted_roles, victims, kinds;
  int32_t error; /* 0: kill */
  uint64_t limit; /* number of the call at which to act; 0: none */
  _Atomic uint64_t counter;
  _Atomic uint32_t lock, dead, fired, failing;
  uint32_t fired_kind, fired_role;
  _Atomic uint32_t processes;
  int32_t pids[MOST_PROCESSES];
  uint32_t roles[MOST_PROCESSES];
  char fired_name[256];
  char share[PATH_SIZE], keep[PATH_SIZE], log[PATH_SIZE];
};

/* One line of the log; two names and the data follow it. Inodes stand for files whatever they are called. */
struct entry {
  uint32_t kind, role, directory, mode;
  uint64_t inode, replaced;
  int64_t offset, length, result;
  uint32_t name1, name2, data, synced;
};

struct call {
  int kind, ours;
  struct entry entry;
  char name1[PATH_SIZE], name2[PATH_SIZE];
  const void *data;
  void *to_free;
};

static struct control *control;
static uint32_t my_role;
static int log_fd = -1;

/* ---------------------------------------------------------------------------------------------------- attaching */

static void attach(const char *path, uint32_t role)
{
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
  if (fd < 0)
    return;
  void *mapped = (void *)syscall(SYS_mmap, 0, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (mapped == MAP_FAILED || ((struct control *)mapped)->magic != MAGIC)
    return;
  struct control *found = mapped;
  if (found->flags & RECORD) {
    fd = (int)syscall(SYS_openat, AT_FDCWD, found->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    log_fd = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 700);
    syscall(SYS_close, fd);
  }
  uint32_t place = atomic_fetch_add(&found->processes, 1);
  if (place < MOST_PROCESSES) {
    found->pids[place] = (int32_t)syscall(SYS_getpid);
    found->roles[place] = role;
  }
  my_role = role;
  control = found;
}

void crash_attach(const char *path)
{
  attach(path, PYTHON);
}

__attribute__((constructor)) static void attach_program(void)
{
  const char *library = getenv("LD_PRELOAD");
  char path[PATH_SIZE];
  if (!library || strlen(library) + 16 > sizeof path)
    return;
  strcpy(path, library);
  path[strcspn(path, ": ")] = 0;
  char *slash = strrchr(path, '/');
  if (!slash)
    return;
  strcpy(slash, "/control");
  attach(path, TOOL);
}

/* ------------------------------------------------------------------------------------- what a call is about */

/* The part of a path below the share, "" for the share itself; NULL where it is not there. */
static const char *below(const char *path)
{
  size_t length = strlen(control->share);
  if (strncmp(path, control->share, length) || (path[length] && path[length] != '/'))
    return NULL;
  return path[length] ? path + length + 1 : path + length;
}

static int path_of_descriptor(int fd, char *path)
{
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_SIZE - 1);
  if (length < 0)
    return -1;
  path[length] = 0;
  return 0;
}

static int name_of_descriptor(int fd, char *name)
{
  char path[PATH_SIZE];
  if (path_of_descriptor(fd, path))
    return -1;
  const char *found = below(path);
  if (!found)
    return -1;
  strcpy(name, found);
  return 0;
}

/* Only what is spelt as a name under the share, or relative to a directory there; a link to it is none of ours. */
static int name_of_path(int directory, const char *given, char *name)
{
  char path[2 * PATH_SIZE + 2];
  if (given[0] == '/') {
    snprintf(path, sizeof path, "%s", given);
  } else if (directory == AT_FDCWD) {
    if (syscall(SYS_getcwd, path, PATH_SIZE) < 0)
      return -1;
    snprintf(path + strlen(path), PATH_SIZE, "/%s", given);
  } else {
    if (path_of_descriptor(directory, path))
      return -1;
    snprintf(path + strlen(path), PATH_SIZE, "/%s", given);
  }
  const char *found = below(path);
  if (!found || strlen(found) >= PATH_SIZE)
    return -1;
  strcpy(name, found);
  return 0;
}

static uint64_t inode_of(int directory, const char *path)
{
  struct stat status;
  long failed = path ? syscall(SYS_newfstatat, directory, path, &status, AT_SYMLINK_NOFOLLOW) : syscall(SYS_fstat, directory, &status);
  return failed ? 0 : status.st_ino;
}

/* ------------------------------------------------------------------------------------------------- the acting */

static void lock(void)
{
  if (control->flags & SERIAL)
    while (atomic_exchange(&control->lock, 1))
      sched_yield();
}

static void unlock(void)
{
  if (control->flags & SERIAL)
    atomic_store(&control->lock, 0);
}

static void stop_if_dead(void)
{
  while (atomic_load(&control->dead) & my_role)
    syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0);
}

static void kill_victims(void)
{
  int32_t me = (int32_t)syscall(SYS_getpid);
  uint32_t count = atomic_load(&control->processes);
  atomic_store(&control->dead, control->victims);
  for (uint32_t i = 0; i < count && i < MOST_PROCESSES; i++)
    if ((control->roles[i] & control->victims) && control->pids[i] != me)
      syscall(SYS_kill, control->pids[i], SIGKILL);
  if (control->victims & my_role)
    syscall(SYS_kill, me, SIGKILL);
  stop_if_dead();
  struct timespec pause = {0, 100 * 1000 * 1000}; /* a survivor is slow, so that what comes next meets it */
  syscall(SYS_ppoll, NULL, 0, &pause, NULL, 0);
}

static int act(const struct call *c)
{
  control->fired_kind = (uint32_t)c->kind;
  control->fired_role = my_role;
  snprintf(control->fired_name, sizeof control->fired_name, "%.255s", c->name1);
  atomic_store(&control->fired, 1);
  if (!control->error) {
    kill_victims();
    return 0;
  }
  if (control->flags & STICKY)
    atomic_store(&control->failing, 1);
  return control->error;
}

/* A full file system still lets names go, and one that is full or read-only can be read. */
static int can_fail(int kind)
{
  if (kind > OPEN_TO_WRITE)
    return control->error != ENOSPC && control->error != EROFS;
  return control->error != ENOSPC || (kind != UNLINK && kind != ATTRIBUTE && kind != OPEN_TO_WRITE);
}

/* Before a call on the share: counts it and acts. Returns the error that it is to end with, or 0 to do it. */
static int begin(struct call *c)
{
  c->ours = 1;
  stop_if_dead();
  lock();
  stop_if_dead();
  int meant = (control->kinds & (1u << c->kind)) && (!control->error || can_fail(c->kind));
  int counted = meant && (control->counted_roles & my_role);
  int error = 0;
  if (counted) {
    uint64_t number = atomic_fetch_add(&control->counter, 1) + 1;
    if (control->limit && number == control->limit)
      error = act(c);
  }
  if (!error && meant && atomic_load(&control->failing))
    error = control->error;
  if (error) {
    unlock();
    c->ours = 0;
    errno = error;
  }
  return error;
}

static void append(const void *data, size_t length)
{
  const char *from = data;
  while (length) {
    long done = syscall(SYS_write, log_fd, from, length);
    if (done <= 0)
      return;
    from += done;
    length -= (size_t)done;
  }
}

/* After it: records what was done. Keeps errno. */
static long end(struct call *c, long result)
{
  if (!c->ours)
    return result;
  int saved = errno;
  if ((control->flags & RECORD) && log_fd >= 0) {
    struct entry *e = &c->entry;
    e->kind = (uint32_t)c->kind;
    e->role = my_role;
    e->result = result;
    e->name1 = (uint32_t)strlen(c->name1);
    e->name2 = (uint32_t)strlen(c->name2);
    if (result < 0 || !c->data)
      e->data = 0;
    append(e, sizeof *e);
    append(c->name1, e->name1);
    append(c->name2, e->name2);
    append(c->data, e->data);
  }
  unlock();
  free(c->to_free);
  errno = saved;
  return result;
}

static int on_descriptor(struct call *c, int kind, int fd)
{
  memset(&c->entry, 0, sizeof c->entry);
  c->kind = kind;
  c->ours = 0;
  c->data = c->to_free = NULL;
  c->name2[0] = 0;
  if (!control)
    return 0;
  int saved = errno;
  int found = !name_of_descriptor(fd, c->name1);
  if (found) {
    struct stat status;
    if (!syscall(SYS_fstat, fd, &status)) {
      c->entry.inode = status.st_ino;
      c->entry.directory = S_ISDIR(status.st_mode);
    }
    long flags = syscall(SYS_fcntl, fd, F_GETFL);
    c->entry.synced = flags >= 0 && (flags & O_DSYNC);
  }
  errno = saved;
  return found;
}

static int on_name(struct call *c, int kind, int directory, const char *path)
{
  memset(&c->entry, 0, sizeof c->entry);
  c->kind = kind;
  c->ours = 0;
  c->data = c->to_free = NULL;
  c->name2[0] = 0;
  if (!control || !path)
    return 0;
  int saved = errno;
  int found = !name_of_path(directory, path, c->name1);
  if (found)
    c->entry.inode = inode_of(directory, path);
  errno = saved;
  return found;
}

/* An inode whose last name goes away gets one outside of the share, so that a lost unlink can be played: same inode number. One
 * that has another name needs none yet, and a task that goes on with it must not meet a second name that nobody gave it. */
static void keep_inode(int directory, const char *path, uint64_t inode)
{
  char kept[PATH_SIZE + 32];
  struct stat status;
  if (!(control->flags & RECORD) || !control->keep[0] || !inode)
    return;
  if (syscall(SYS_newfstatat, directory, path, &status, AT_SYMLINK_NOFOLLOW) || status.st_nlink > 1)
    return;
  snprintf(kept, sizeof kept, "%s/%llu", control->keep, (unsigned long long)inode);
  syscall(SYS_linkat, directory, path, AT_FDCWD, kept, 0);
}

/* ------------------------------------------------------------------------------------------------ the wrappers */

static ssize_t written(struct call *c, ssize_t result, int64_t offset, const void *data)
{
  if (c->ours) {
    c->entry.offset = offset;
    c->entry.length = result;
    c->entry.data = result > 0 ? (uint32_t)result : 0;
    c->data = data;
  }
  return end(c, result);
}

ssize_t write(int fd, const void *data, size_t length)
{
  struct call c;
  if (on_descriptor(&c, WRITE, fd) && begin(&c))
    return -1;
  ssize_t result = syscall(SYS_write, fd, data, length);
  int64_t offset = c.ours && result > 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) - result : 0;
  return written(&c, result, offset, data);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
  struct call c;
  if (on_descriptor(&c, WRITE, fd) && begin(&c))
    return -1;
  return written(&c, syscall(SYS_pwrite64, fd, data, length, offset), offset, data);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
  return pwrite64(fd, data, length, offset);
}

static void *gathered(const struct iovec *parts, int count, ssize_t length)
{
  char *all = length > 0 ? malloc((size_t)length) : NULL;
  size_t at = 0;
  for (int i = 0; all && i < count && at < (size_t)length; i++) {
    size_t part = parts[i].iov_len < (size_t)length - at ? parts[i].iov_len : (size_t)length - at;
    memcpy(all + at, parts[i].iov_base, part);
    at += part;
  }
  return all;
}

static ssize_t write_parts(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
  struct call c;
  if (on_descriptor(&c, WRITE, fd) && begin(&c))
    return -1;
  ssize_t result = flags < 0 ? syscall(SYS_pwritev, fd, parts, count, offset, 0) : syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
  if (!c.ours)
    return result;
  c.to_free = (control->flags & RECORD) ? gathered(parts, count, result) : NULL;
  return written(&c, result, offset, c.to_free);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
  return write_parts(fd, parts, count, offset, -1);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
  return write_parts(fd, parts, count, offset, -1);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
  return write_parts(fd, parts, count, offset, flags);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
  return write_parts(fd, parts, count, offset, flags);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
  struct call c;
  if (on_descriptor(&c, WRITE, fd) && begin(&c))
    return -1;
  ssize_t result = syscall(SYS_writev, fd, parts, count);
  if (!c.ours)
    return result;
  c.to_free = (control->flags & RECORD) ? gathered(parts, count, result) : NULL;
  return written(&c, result, result > 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) - result : 0, c.to_free);
}

int ftruncate64(int fd, off64_t size)
{
  struct call c;
  if (on_descriptor(&c, TRUNCATE, fd) && begin(&c))
    return -1;
  c.entry.length = size;
  return (int)end(&c, syscall(SYS_ftruncate, fd, size));
}

int ftruncate(int fd, off_t size)
{
  return ftruncate64(fd, size);
}

int truncate64(const char *path, off64_t size)
{
  struct call c;
  if (on_name(&c, TRUNCATE, AT_FDCWD, path) && begin(&c))
    return -1;
  c.entry.length = size;
  return (int)end(&c, syscall(SYS_truncate, path, size));
}

int truncate(const char *path, off_t size)
{
  return truncate64(path, size);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
  struct call c;
  if (on_descriptor(&c, FALLOCATE, fd) && begin(&c))
    return -1;
  c.entry.mode = (uint32_t)mode;
  c.entry.offset = offset;
  c.entry.length = length;
  return (int)end(&c, syscall(SYS_fallocate, fd, mode, offset, length));
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
  return fallocate64(fd, mode, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
  static int (*original)(int, off64_t, off64_t);
  struct call c;
  if (on_descriptor(&c, FALLOCATE, fd) && begin(&c))
    return errno;
  if (!original)
    original = (int (*)(int, off64_t, off64_t))dlsym(RTLD_NEXT, "posix_fallocate64");
  c.entry.offset = offset;
  c.entry.length = length;
  int error = original(fd, offset, length);
  end(&c, error ? -1 : 0);
  return error;
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
  return posix_fallocate64(fd, offset, length);
}

/* What was copied is read back, because the record must not depend on its source; by a descriptor that can read. */
static void read_back(struct call *c, int fd, int64_t offset, int64_t length)
{
  if (!c->ours || !(control->flags & RECORD) || length <= 0)
    return;
  char again[64];
  snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
  int reader = (int)syscall(SYS_openat, AT_FDCWD, again, O_RDONLY | O_CLOEXEC);
  c->to_free = malloc((size_t)length);
  int64_t at = 0;
  while (c->to_free && at < length) {
    long done = syscall(SYS_pread64, reader, (char *)c->to_free + at, length - at, offset + at);
    if (done <= 0)
      break;
    at += done;
  }
  syscall(SYS_close, reader);
  c->data = c->to_free;
  c->entry.data = (uint32_t)at;
  c->entry.offset = offset;
  c->entry.length = at;
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t length, unsigned flags)
{
  struct call c;
  if (on_descriptor(&c, COPY, out) && begin(&c))
    return -1;
  int64_t offset = out_offset ? *out_offset : syscall(SYS_lseek, out, 0, SEEK_CUR);
  ssize_t result = syscall(SYS_copy_file_range, in, in_offset, out, out_offset, length, flags);
  read_back(&c, out, offset, result);
  return end(&c, result);
}

ssize_t sendfile64(int out, int in, off64_t *in_offset, size_t length)
{
  struct call c;
  if (on_descriptor(&c, COPY, out) && begin(&c))
    return -1;
  int64_t offset = c.ours ? syscall(SYS_lseek, out, 0, SEEK_CUR) : 0;
  ssize_t result = syscall(SYS_sendfile, out, in, in_offset, length);
  read_back(&c, out, offset, result);
  return end(&c, result);
}

ssize_t sendfile(int out, int in, off_t *in_offset, size_t length)
{
  return sendfile64(out, in, in_offset, length);
}

int ioctl(int fd, unsigned long request, ...)
{
  va_list arguments;
  va_start(arguments, request);
  void *argument = va_arg(arguments, void *);
  va_end(arguments);
  struct call c;
  if (request != FICLONE && request != FICLONERANGE)
    return (int)syscall(SYS_ioctl, fd, request, argument);
  if (on_descriptor(&c, COPY, fd) && begin(&c))
    return -1;
  int result = (int)syscall(SYS_ioctl, fd, request, argument);
  struct stat status;
  if (!result && c.ours && !syscall(SYS_fstat, fd, &status))
    read_back(&c, fd, 0, status.st_size);
  return (int)end(&c, result);
}

int fsync(int fd)
{
  struct call c;
  if (on_descriptor(&c, FSYNC, fd) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_fsync, fd));
}

int fdatasync(int fd)
{
  struct call c;
  if (on_descriptor(&c, FSYNC, fd) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_fdatasync, fd));
}

static int open_path(int directory, const char *path, int flags, mode_t mode)
{
  struct call c;
  int kind = flags & O_CREAT ? CREATE : (flags & O_ACCMODE) == O_RDONLY ? OPEN_TO_READ : OPEN_TO_WRITE;
  if (!control)
    return (int)syscall(SYS_openat, directory, path, flags, mode);
  int ours = on_name(&c, kind, directory, path);
  int fd;
  if (!ours && strncmp(path, "/proc/self/fd/", 14) == 0) /* as programs are given the files of a share */
    ours = on_descriptor(&c, kind, atoi(path + 14));
  if (!ours && path[0] == '/') { /* or a link to that, in a directory of their own */
    char target[PATH_SIZE];
    long length = syscall(SYS_readlinkat, AT_FDCWD, path, target, sizeof target - 1);
    if (length > 14) {
      target[length] = 0;
      if (strncmp(target, "/proc/self/fd/", 14) == 0)
        ours = on_descriptor(&c, kind, atoi(target + 14));
    }
  }
  if (ours && begin(&c))
    return -1;
  fd = (int)syscall(SYS_openat, directory, path, flags, mode);
  if (fd >= 0 && c.ours) {
    c.entry.inode = inode_of(fd, NULL);
    c.entry.mode = (uint32_t)(flags & O_TRUNC);
  }
  return (int)end(&c, fd);
}

ssize_t read(int fd, void *data, size_t length)
{
  struct call c;
  if (on_descriptor(&c, READ, fd) && begin(&c))
    return -1;
  return end(&c, syscall(SYS_read, fd, data, length));
}

ssize_t pread64(int fd, void *data, size_t length, off64_t offset)
{
  struct call c;
  if (on_descriptor(&c, READ, fd) && begin(&c))
    return -1;
  return end(&c, syscall(SYS_pread64, fd, data, length, offset));
}

ssize_t pread(int fd, void *data, size_t length, off_t offset)
{
  return pread64(fd, data, length, offset);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset)
{
  struct call c;
  if (on_descriptor(&c, READ, fd) && begin(&c))
    return -1;
  return end(&c, syscall(SYS_preadv, fd, parts, count, offset, 0));
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset)
{
  return preadv64(fd, parts, count, offset);
}

int fstatat64(int directory, const char *path, struct stat64 *status, int flags)
{
  struct call c;
  if (on_name(&c, STATUS, directory, path) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_newfstatat, directory, path, status, flags));
}

int fstatat(int directory, const char *path, struct stat *status, int flags)
{
  return fstatat64(directory, path, (struct stat64 *)status, flags);
}

int stat(const char *path, struct stat *status)
{
  return fstatat(AT_FDCWD, path, status, 0);
}

int stat64(const char *path, struct stat64 *status)
{
  return fstatat64(AT_FDCWD, path, status, 0);
}

int lstat(const char *path, struct stat *status)
{
  return fstatat(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

int lstat64(const char *path, struct stat64 *status)
{
  return fstatat64(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

int fstat64(int fd, struct stat64 *status)
{
  struct call c;
  if (on_descriptor(&c, STATUS, fd) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_fstat, fd, status));
}

int fstat(int fd, struct stat *status)
{
  return fstat64(fd, (struct stat64 *)status);
}

#define MODE_ARGUMENT(last)                  \
  mode_t mode = 0;                           \
  if (flags & (O_CREAT | __O_TMPFILE)) {     \
    va_list arguments;                       \
    va_start(arguments, last);               \
    mode = va_arg(arguments, mode_t);        \
    va_end(arguments);                       \
  }

int open64(const char *path, int flags, ...)
{
  MODE_ARGUMENT(flags)
  return open_path(AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
  MODE_ARGUMENT(flags)
  return open_path(AT_FDCWD, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...)
{
  MODE_ARGUMENT(flags)
  return open_path(directory, path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...)
{
  MODE_ARGUMENT(flags)
  return open_path(directory, path, flags, mode);
}

int creat(const char *path, mode_t mode)
{
  return open_path(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int linkat(int directory1, const char *path1, int directory2, const char *path2, int flags)
{
  struct call c;
  int ours = on_name(&c, LINK, directory2, path2);
  if (ours) {
    strcpy(c.name2, c.name1);
    if (name_of_path(directory1, path1, c.name1))
      c.name1[0] = 0;
    if (begin(&c))
      return -1;
  }
  long result = syscall(SYS_linkat, directory1, path1, directory2, path2, flags);
  if (!result && c.ours)
    c.entry.inode = inode_of(directory2, path2);
  return (int)end(&c, result);
}

int link(const char *path1, const char *path2)
{
  return linkat(AT_FDCWD, path1, AT_FDCWD, path2, 0);
}

int renameat2(int directory1, const char *path1, int directory2, const char *path2, unsigned flags)
{
  struct call c;
  int ours = on_name(&c, RENAME, directory1, path1);
  if (ours && name_of_path(directory2, path2, c.name2))
    c.name2[0] = 0;
  if (ours && begin(&c))
    return -1;
  if (c.ours) {
    c.entry.replaced = inode_of(directory2, path2);
    if (c.entry.replaced != c.entry.inode)
      keep_inode(directory2, path2, c.entry.replaced);
  }
  return (int)end(&c, syscall(SYS_renameat2, directory1, path1, directory2, path2, flags));
}

int renameat(int directory1, const char *path1, int directory2, const char *path2)
{
  return renameat2(directory1, path1, directory2, path2, 0);
}

int rename(const char *path1, const char *path2)
{
  return renameat2(AT_FDCWD, path1, AT_FDCWD, path2, 0);
}

int unlinkat(int directory, const char *path, int flags)
{
  struct call c;
  if (on_name(&c, UNLINK, directory, path) && begin(&c))
    return -1;
  if (c.ours && !(flags & AT_REMOVEDIR))
    keep_inode(directory, path, c.entry.inode);
  return (int)end(&c, syscall(SYS_unlinkat, directory, path, flags));
}

int unlink(const char *path)
{
  return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
  return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
  struct call c;
  if (on_name(&c, MKDIR, directory, path) && begin(&c))
    return -1;
  long result = syscall(SYS_mkdirat, directory, path, mode);
  if (!result && c.ours)
    c.entry.inode = inode_of(directory, path);
  return (int)end(&c, result);
}

int mkdir(const char *path, mode_t mode)
{
  return mkdirat(AT_FDCWD, path, mode);
}

int fchmod(int fd, mode_t mode)
{
  struct call c;
  if (on_descriptor(&c, ATTRIBUTE, fd) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_fchmod, fd, mode));
}

int fchown(int fd, uid_t owner, gid_t group)
{
  struct call c;
  if (on_descriptor(&c, ATTRIBUTE, fd) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_fchown, fd, owner, group));
}

int fchmodat(int directory, const char *path, mode_t mode, int flags)
{
  static int (*original)(int, const char *, mode_t, int);
  struct call c;
  if (on_name(&c, ATTRIBUTE, directory, path) && begin(&c))
    return -1;
  if (!original)
    original = (int (*)(int, const char *, mode_t, int))dlsym(RTLD_NEXT, "fchmodat");
  return (int)end(&c, original(directory, path, mode, flags));
}

int chmod(const char *path, mode_t mode)
{
  return fchmodat(AT_FDCWD, path, mode, 0);
}

int fchownat(int directory, const char *path, uid_t owner, gid_t group, int flags)
{
  struct call c;
  if (on_name(&c, ATTRIBUTE, directory, path) && begin(&c))
    return -1;
  return (int)end(&c, syscall(SYS_fchownat, directory, path, owner, group, flags));
}

int chown(const char *path, uid_t owner, gid_t group)
{
  return fchownat(AT_FDCWD, path, owner, group, 0);
}

int lchown(const char *path, uid_t owner, gid_t group)
{
  return fchownat(AT_FDCWD, path, owner, group, AT_SYMLINK_NOFOLLOW);
}
