"""The tables against <linux/fuse.h>: sizes of structs and numbers of ioctls, as the kernel's compiler has them."""

from __future__ import annotations

import struct

import pytest

from dsfs.fuse import wire

SIZES = {
    "IN_HEADER": 40,  # fuse_in_header
    "OUT_HEADER": 16,  # fuse_out_header
    "INIT_IN": 16,  # fuse_init_in up to flags
    "INIT_OUT": 64,  # fuse_init_out
    "ATTR": 88,  # fuse_attr
    "ENTRY_OUT": 128 - 88,  # fuse_entry_out without attr
    "ATTR_OUT": 104 - 88,  # fuse_attr_out without attr
    "GETATTR_IN": 16,
    "OPEN_IN": 8,
    "OPEN_OUT": 16,
    "READ_IN": 40,
    "RELEASE_IN": 24,
    "GETXATTR_IN": 8,
    "GETXATTR_OUT": 8,
    "KSTATFS": 80,  # fuse_kstatfs
    "INTERRUPT_IN": 8,
    "DIRENT": 24,  # FUSE_NAME_OFFSET
    "BACKING_MAP": 16,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
}


@pytest.mark.parametrize("name", SIZES)
def test_size_of(name: str) -> None:
    table = getattr(wire, name)
    assert table.size == SIZES[name]
    assert table.format.startswith("="), "native order, no padding of its own"


def test_every_table_is_in_the_list() -> None:
    tables = {name for name, value in vars(wire).items() if isinstance(value, struct.Struct)}
    assert tables - {"INIT_IN_FLAGS2"} == set(SIZES)
    assert wire.INIT_IN_FLAGS2.size == 4


def test_no_field_is_where_a_compiler_would_put_padding() -> None:
    """The kernel's structs have their padding as fields: packed and aligned layouts must be the same."""
    for name in SIZES:
        table = getattr(wire, name)
        assert struct.calcsize("@" + table.format[1:]) == table.size, name


def test_ioctls() -> None:
    """Computed as <asm-generic/ioctl.h> does: direction, size, type, number."""
    write = 1
    assert write << 30 | 16 << 16 | 229 << 8 | 1 == wire.DEV_IOC_BACKING_OPEN == 0x4010E501
    assert write << 30 | 4 << 16 | 229 << 8 | 2 == wire.DEV_IOC_BACKING_CLOSE == 0x4004E502


def test_numbers_that_a_wrong_digit_would_turn_into_another_request() -> None:
    assert {
        opcode.name: opcode.value for opcode in wire.Opcode if opcode in (1, 2, 3, 14, 15, 18, 26, 28, 36, 42, 44)
    } == {
        "LOOKUP": 1,
        "FORGET": 2,
        "GETATTR": 3,
        "OPEN": 14,
        "READ": 15,
        "RELEASE": 18,
        "INIT": 26,
        "READDIR": 28,
        "INTERRUPT": 36,
        "BATCH_FORGET": 42,
        "READDIRPLUS": 44,
    }
    assert wire.InitFlag.PASSTHROUGH == 1 << 37
    assert wire.InitFlag.HAS_RESEND == 1 << 39
    assert wire.InitFlag.NO_OPEN_SUPPORT == 1 << 17
    assert wire.OpenFlag.PASSTHROUGH == 1 << 7
    assert wire.Notify.RESEND == 7
    assert wire.UNIQUE_RESEND == 1 << 63
