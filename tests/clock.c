/* The wall clock of a process, moved by as many seconds as the file of COHORT_TEST_CLOCK holds (a
 * long, in the machine's byte order). The monotonic clock stays what it is. Deadlines that were
 * taken from the moved clock are moved back on their way to the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LEAST_WALL 1000000000L /* seconds; a monotonic clock is not that far */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static volatile long *moved_by(void)
{
    static volatile long *shared;
    static long nothing;
    const char *path = getenv("COHORT_TEST_CLOCK");
    if (!shared && path) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        void *page = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        shared = page == MAP_FAILED ? &nothing : page;
        close(file);
    }
    return shared ? shared : &nothing;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = REAL(clock_gettime)(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *moved_by();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = REAL(gettimeofday)(now, zone);
    now->tv_sec += *moved_by();
    return failed;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

static struct timespec back(const struct timespec *deadline)
{
    struct timespec theirs = *deadline;
    if (theirs.tv_sec > LEAST_WALL)
        theirs.tv_sec -= *moved_by();
    return theirs;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
    struct timespec theirs = back(until);
    /* The symbol has an older version, which dlsym may give. */
    return ((__typeof__(&pthread_cond_timedwait))dlvsym(
        RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"))(cond, mutex, &theirs);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until)
{
    struct timespec theirs = back(until);
    return REAL(sem_timedwait)(semaphore, &theirs);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until)
{
    struct timespec theirs = back(until);
    return REAL(pthread_mutex_timedlock)(mutex, &theirs);
}
