# SPDX-License-Identifier: 0BSD
"""C identifiers from names of any kind, and the one prefix of a project's names and files, which
must not be anybody else's.
"""

from __future__ import annotations

import re

NAME_MOST = 200  # characters of a project's name: with lib.., _weights_array.h it stays a file's
PART_MOST = 80  # of the identifier of a step

# A project `m` has m.h, libm.so, m_t, m_init, M_OK and their like. What follows is every m for
# which one of these exists already: in C11, POSIX, glibc, newlib, the compilers' own headers or
# libjpeg (tests/codegen/test_names.py asks the compiler for what it knows), or in the project
# itself. To ask the compiler at hand would make a project's name depend on the machine.
OURS = "main selftest bin2c golden run static"  # static::static is a target of CMake's
HEADERS = """
    aio alloca ar argp argz assert byteswap cet complex cpio cpuid crypt ctype devctl dirent
    dlfcn elf endian envlock envz err errno error execinfo fastmath fcntl features fenv float
    fmtmsg fnmatch fpu_control fstab fts ftw gconv gcov getopt glob grp gshadow iconv ieee754
    ieeefp ifaddrs inttypes iso646 jconfig jerror jmorecfg jpegint jpeglib langinfo lastlog
    libgen libintl libio limits link locale malloc math mcheck memory mm3dnow mm_malloc mntent
    monetary mqueue ndbm netdb newlib nl_types nss obstack omp openacc paths poll printf
    proc_service pty pwd quadmath re_comp reent regdef regex regexp resolv sched search
    semaphore setjmp sgtty shadow signal spawn stab stdalign stdarg stdatomic stdbit stdbool
    stdckdint stddef stdfix stdint stdio stdio_ext stdlib stdnoreturn string strings stropts
    syscall sysexits syslimits syslog tar termio termios tgmath threads time trace ttyent uchar
    ucontext ulimit unctrl unistd unwind utime utmp utmpx values varargs wait wchar wctype
    wordexp xlocale
    """
LIBRARIES = """
    anl asan atomic c c_nano crypt dl g gcc gcc_eh gcc_s gomp itm jpeg l lsan m mvec nosys nsl
    pthread quadmath resolv rt ssp stdc thread_db trace tsan ubsan util xnet y z
    """
# Of m_t, m_init, m_run, m_label, m_info, m_step, .. and of M_OK (F_OK, R_OK, ..).
IDENTIFIERS = """
    active_reg argp_parser blkcnt blkcnt64 blksize caddr cc clock clockid cnd comparison_fn
    cookie_close_function cookie_io_functions cookie_read_function cookie_seek_function
    cookie_write_function cpu_set daddr dev div double elf_fpregset elf_greg elf_gregset
    epoll_data eventfd ex f fan_event fanotify femode fexcept fpos fpos64 fpregset fsblkcnt
    fsblkcnt64 fsfilcnt fsfilcnt64 fsid gai gid glob64 greg gregset id idtype imaxdiv in_addr
    in_port inet6_opt inet6_option inet6_rth ino ino64 inotify jpeg_header key ldiv lldiv loff
    lwpid max_align mbstate mcontext mm mode mqd msglen msgqnum mtx nfds nlink ns_opt_dnssec off
    off64 pid pr prfpregset prgregset printf_size prpsinfo prstatus psaddr ptrdiff quad r re_dfa
    reg_errcode reg_syntax register regmatch regoff res rlim rlim64 s_reg sa_family sbintime sem
    shm shmatt sig sig_atomic sigevent sighandler siginfo sigset sigval size socklen speed ssize
    stack suseconds svc tcflag tcp thrd thrd_start timer tss tss_dtor u_quad u_register uid
    useconds w wctrans wint x
    """
# What a program may have as a macro, where a name is an argument of -D (examples/cortex_m).
MACROS = """
    alignas alignof and and_eq bitand bitor bool compl false i386 linux noreturn not not_eq or
    or_eq static_assert stderr stdin stdout thread_local true unix xor xor_eq
    """
FAMILIES = re.compile(
    r"(bdcc|atomic|posix|pthread|xdr)(_.*)?"
    r"|(u_?|b)?(int|float|poly|char)(_fast|_least)?[0-9]+(x[0-9]+)*|u?int(max|ptr)"
    r"|arm_.*|.*intrin|.*_kernels"
)
TAKEN = frozenset(" ".join((OURS, HEADERS, LIBRARIES, IDENTIFIERS, MACROS)).split())


def c_identifier(text: str) -> str:
    """A valid, lower-case C identifier made from a file or layer name."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "model"
    return name if not name[0].isdigit() else f"m{name}"


def project_name(text: str) -> str:
    """The prefix of a project's C names and files: the text as an identifier, cut to NAME_MOST
    characters, and with _model behind it where that is taken.
    """
    name = c_identifier(text)[:NAME_MOST].rstrip("_")
    return f"{name}_model" if name in TAKEN or FAMILIES.fullmatch(name) else name
