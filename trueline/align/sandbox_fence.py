"""The fence around model-written code: called by a process about itself, never undone. Linux only; imports nothing of Trueline.

    fence(seconds, memory, machine)      raises OSError where the kernel does not offer all of it

    rlimits     CPU time, address space, open files; no file grows, no core is written, no process is started
    capabilities  none are left, also to root
    Landlock    files: only what Python itself consists of can be read, nothing written (metadata of files stays visible)
    seccomp     system calls: a list of those that a computation needs. Not on it: sockets, processes and threads, executing a program,
                signals to others, writing and renaming, kernel interfaces such as io_uring, bpf, ptrace, keyrings

The list says what is allowed, so a call that a newer kernel brings is refused. Three calls are looked into: opening, for reading only;
fcntl and ioctl, whose other commands let the kernel send signals in one's name; prlimit, on oneself only.
Sources: Linux' Documentation/userspace-api/seccomp_filter and landlock; numbers of asm/unistd_64.h and asm-generic/unistd.h.
"""

import ctypes
import errno
import os
import resource
import struct
import sys

ALLOWED = {
    # read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 readv writev access
    # faccessat dup dup2 dup3 getdents64 getcwd stat lstat newfstatat statx readlink readlinkat futex clock_gettime clock_getres
    # clock_nanosleep nanosleep gettimeofday time exit exit_group getrandom uname getpid gettid getppid get(e)uid get(e)gid sched_yield
    # sched_getaffinity mremap madvise pipe pipe2 poll ppoll select pselect6 getrlimit getrusage times sysinfo sigaltstack rseq
    # set_robust_list restart_syscall alarm setitimer fadvise64 close_range faccessat2
    "x86_64": (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 269, 32, 33, 292, 217, 79, 4, 6, 262, 332, 89, 267, 202, 228,
               229, 230, 35, 96, 201, 60, 231, 318, 63, 39, 186, 110, 102, 107, 104, 108, 24, 204, 25, 28, 22, 293, 7, 271, 23, 270,
               97, 98, 100, 99, 131, 334, 273, 219, 37, 38, 221, 436, 439),
    "aarch64": (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 65, 66, 48, 23, 24, 61, 17, 79, 291, 78, 98, 113, 114, 115,
                101, 169, 93, 94, 278, 160, 172, 178, 173, 174, 175, 176, 177, 124, 123, 216, 233, 59, 73, 72, 163, 165, 153, 179,
                132, 293, 99, 128, 103, 223, 436, 439),
}  # fmt: skip
"""Machine -> numbers of the calls that may be made with any arguments."""
LOOKED_INTO = {  # number -> (which argument, "equal" or "without", values or bits)
    "x86_64": {2: (1, "without"), 257: (2, "without"), 72: (1, "fcntl"), 16: (1, "ioctl"), 302: (0, "self")},
    "aarch64": {56: (2, "without"), 25: (1, "fcntl"), 29: (1, "ioctl"), 261: (0, "self")},
}
VALUES = {
    "fcntl": (0, 1, 2, 3, 4, 1030),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
    "ioctl": (0x5401, 0x541B, 0x5421, 0x5450, 0x5451),  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "self": (0,),
}
WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and the bit of O_TMPFILE."""
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CAPSET = {"x86_64": 126, "aarch64": 91}
SOCKET = {"x86_64": 41, "aarch64": 198}
UNIFIED = 424
"""From this number on machines agree, and libc falls back to older calls when it is told that there is no such call."""
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILES, READ_FOLDERS = 1 << 2, 1 << 3
PR_SET_DUMPABLE, PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 1, 22, 38
KILL = 9


def fence(seconds: int, memory: int, machine: str) -> None:
    """Hold this process: CPU time in seconds, address space in bytes, on a machine as `platform.machine()` names it."""
    if sys.platform != "linux" or machine not in ALLOWED:
        raise OSError(f"no list of system calls for {sys.platform} on {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    _done(libc.prctl(PR_SET_PDEATHSIG, KILL, 0, 0, 0), "prctl")
    _done(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    _done(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    limits = {
        resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: memory, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0,
    }  # fmt: skip
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # version 3, this process; no set of capabilities
    _done(libc.syscall(CAPSET[machine], header, none), "capset")
    _landlock(libc)
    _seccomp(libc, machine)
    if libc.syscall(SOCKET[machine], 2, 1, 0) != -1 or ctypes.get_errno() != errno.EPERM:
        raise OSError("a socket could be made behind the fence")


def _landlock(libc: ctypes.CDLL) -> None:
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError("the kernel has no Landlock, or it is switched off")
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # every right to files that this version knows
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals stay inside
    rules = struct.pack("=QQQ", handled, 0, scoped) if version >= 6 else struct.pack("=Q", handled)
    fd = _done(libc.syscall(LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0), "Landlock")
    for folder in {os.path.dirname(os.__file__), *(os.path.join(root, "lib") for root in ("/", "/usr", sys.base_prefix)),
                   "/lib64", "/usr/lib64", "/usr/share/zoneinfo"}:  # fmt: skip
        if os.path.isdir(folder):
            beneath = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            rule = struct.pack("=Qi", READ_FILES | READ_FOLDERS, beneath)
            _done(libc.syscall(LANDLOCK_ADD, fd, 1, rule, 0), "Landlock")
            os.close(beneath)
    _done(libc.syscall(LANDLOCK_RESTRICT, fd, 0), "Landlock")
    os.close(fd)


def _seccomp(libc: ctypes.CDLL, machine: str) -> None:
    program = _program(machine)
    code = ctypes.create_string_buffer(b"".join(program), 8 * len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    _done(libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program), ctypes.addressof(code))), 0, 0), "seccomp")


def _program(machine: str) -> list[bytes]:
    """Classic BPF over seccomp_data: number at 0, architecture at 4, low words of the arguments at 16, 24, ..."""
    LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000

    def say(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    program = [say(LOAD, 4), say(EQUAL, ARCHITECTURE[machine], 1, 0), say(RETURN, kill), say(LOAD, 0)]
    if machine == "x86_64":  # the x32 calls have their own numbers
        program += [say(AT_LEAST, 0x40000000, 0, 1), say(RETURN, kill)]
    for number in ALLOWED[machine]:
        program += [say(EQUAL, number, 0, 1), say(RETURN, allow)]
    for number, (argument, rule) in LOOKED_INTO[machine].items():
        test = [say(LOAD, 16 + 8 * argument)]
        if rule == "without":
            test += [say(ANY_BIT, WRITING, 1, 0), say(RETURN, allow)]
        for value in VALUES.get(rule, ()):
            test += [say(EQUAL, value, 0, 1), say(RETURN, allow)]
        test.append(say(RETURN, refuse))
        program += [say(EQUAL, number, 0, len(test)), *test]
    return [*program, say(AT_LEAST, UNIFIED, 0, 1), say(RETURN, unknown), say(RETURN, refuse)]


def _done(result: int, what: str) -> int:
    if result < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result
