"""``this_machine``, from kernel files that the test writes."""

import os

from hasten.bench.machine import this_machine

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 amx_tile\n\n"


def test_values_come_from_kernel_files(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO * 2)
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("4096000\n")
    machine = this_machine(proc=tmp_path, cgroup=tmp_path)
    assert machine.cpu == "Some CPU @ 2.00GHz"
    assert machine.instruction_sets == ("AVX2", "AVX512", "AVX512-VNNI", "AMX-INT8")
    assert (machine.memory, machine.memory_limit) == (16_384_000_000, 4_096_000)
    assert (machine.core_limit, machine.cores) == (1.5, min(1.5, machine.usable_cores))


def test_missing_limits_and_files(tmp_path):
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    machine = this_machine(proc=tmp_path / "absent", cgroup=tmp_path)
    assert (machine.core_limit, machine.memory_limit, machine.instruction_sets) == (None, None, ())
    assert machine.cpu
    assert machine.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.cores == machine.usable_cores == len(os.sched_getaffinity(0))


def test_the_machine_of_the_test():
    machine = this_machine()
    assert machine.memory > 2**28
    assert 1 <= machine.usable_cores <= machine.logical_cores
