/* Copyright (c) contributors to the remotefs.storage collection
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Lets user-mode Linux 6.1 run on processors with AMX. It is loaded with LD_PRELOAD into linux.uml.
 *
 * User-mode Linux reads and writes the extended state (XSTATE) of the processes it traces in a buffer of 2,696 bytes. That is
 * enough for AVX-512 and protection keys; the state of a processor with AMX has about 11 KiB. The kernel reads out a part of it,
 * but it refuses to write back less than the whole (EFAULT), and user-mode Linux ends at its first process. This ptrace()
 * adds the rest: zeros, the initial state of AMX, which no program in there uses.
 */
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEKTEXT = 1, PEEKDATA, PEEKUSER, GETREGSET = 0x4204, SETREGSET, XSTATE = 0x202 };

static char state[1 << 16];
static size_t whole; /* bytes of the processor's state, once it is known */

static long read_whole(pid_t pid)
{
    struct iovec all = {state, sizeof state};
    long result = syscall(SYS_ptrace, GETREGSET, pid, XSTATE, &all);
    if (!result)
        whole = all.iov_len;
    return result;
}

static long get_part(pid_t pid, struct iovec *part)
{
    long result = read_whole(pid);
    if (result)
        return result;
    if (part->iov_len > whole)
        part->iov_len = whole;
    memcpy(part->iov_base, state, part->iov_len);
    return 0;
}

static long set_with_rest(pid_t pid, const struct iovec *part)
{
    long result = whole ? 0 : read_whole(pid);
    if (result)
        return result;
    memset(state, 0, whole);
    memcpy(state, part->iov_base, part->iov_len < whole ? part->iov_len : whole);
    struct iovec all = {state, whole};
    return syscall(SYS_ptrace, SETREGSET, pid, XSTATE, &all);
}

long ptrace(int request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);
    if (request == GETREGSET && (long)address == XSTATE)
        return get_part(pid, data);
    if (request == SETREGSET && (long)address == XSTATE)
        return set_with_rest(pid, data);
    if (request < PEEKTEXT || request > PEEKUSER)
        return syscall(SYS_ptrace, request, pid, address, data);
    long word = 0; /* the system call stores the word, the C library returns it */
    return syscall(SYS_ptrace, request, pid, address, &word) ? -1 : word;
}
