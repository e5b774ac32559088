"""Tenants share no cache, whatever salts they send."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from hasten.entrypoints.input_processor import check_salt
from hasten.serving.caller import Caller, caller_of, set_caller

TENANTS = ["", "a" * 64, "b" * 64]
SALTS = st.text(max_size=8)


@given(SALTS, SALTS)
def test_salts_differ_between_tenants_and_between_salts(first: str, second: str) -> None:
    for one, other in product(TENANTS, TENANTS):
        salts = Caller(one).cache_salt(first), Caller(other).cache_salt(second)
        assert (salts[0] == salts[1]) == ((one, first) == (other, second))
        for salt in salts:
            check_salt(salt)  # of the engine, of any length and text


def test_a_salt_is_no_way_into_another_tenant() -> None:
    """What a tenant's salt is made of, sent by another as its own salt, ends elsewhere."""
    victim = Caller("a" * 64)
    for salt in (victim.tenant, f"{victim.tenant}\0", victim.cache_salt(), victim.cache_salt("x"), "\0" + victim.tenant):
        assert Caller("b" * 64).cache_salt(salt) not in (victim.cache_salt(), victim.cache_salt("x"))
        assert Caller().cache_salt(salt) not in (victim.cache_salt(), victim.cache_salt("x"))


def test_halves_of_surrogate_pairs_do_no_harm() -> None:
    assert Caller("a" * 64).cache_salt("\ud800") != Caller("a" * 64).cache_salt("\ud801")


def test_the_caller_is_that_of_the_check() -> None:
    scope = {"type": "http", "headers": [(b"hasten_caller", b"x")]}
    assert caller_of(Request(scope)) == Caller()
    set_caller(scope, Caller("t"))
    assert caller_of(Request(scope)) == Caller("t") and "t" not in repr(Caller("tenant")).removeprefix("Caller(")
    assert caller_of(Request({"type": "http", "state": {"hasten_caller": "forged"}})) == Caller()
