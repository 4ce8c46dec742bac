"""A client's secret key, and what is made with it. No server loads this module."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import tenseal.sealapi as seal

from protocols.lattice import wire
from protocols.lattice.context import ID_BYTES, Context, KeySet
from protocols.prg import Secret


class SecretKeys(Secret):
    """A client's secret under each of its contexts (same degree and coefficient primes), and the name of the pair.

    The secret is ternary, drawn by SEAL's generator, which the operating system seeds.
    """

    __slots__ = ("_contexts", "_secrets", "name")

    def __init__(self, contexts: Sequence[Context]) -> None:
        first = seal.KeyGenerator(contexts[0].seal).secret_key()
        members = wire.saved(first)
        self._contexts = tuple(contexts)
        self._secrets = (first, *(_again(context, members) for context in contexts[1:]))
        self.name = secrets.token_bytes(ID_BYTES)

    def encryptor(self, index: int) -> Any:
        """SEAL's encryptor under the secret, for one context."""
        return seal.Encryptor(self._contexts[index].seal, self._secrets[index])

    def decryptor(self, index: int) -> Any:
        """SEAL's decryptor for one context."""
        return seal.Decryptor(self._contexts[index].seal, self._secrets[index])

    def evaluation(self, keys: KeySet) -> bytes:
        """The key message: name, public key, relinearization key, Galois keys; ``keys.bytes`` bytes."""
        context = self._contexts[0]
        maker = seal.KeyGenerator(context.seal, self._secrets[0])
        public = seal.PublicKey()
        maker.create_public_key(public)
        parts = [self.name, wire.dump(public, context.key)]
        if keys.relinearize:
            parts += wire.switching_streams(maker.create_relin_keys(), context.key, [keys.relinearized])
        if keys.elements:
            made = maker.create_galois_keys(list(keys.elements))
            parts += wire.switching_streams(made, context.key, list(keys.elements.values()))
        return b"".join(parts)


def _again(context: Context, members: bytes) -> Any:
    """The same secret key under another context: its polynomial is the same, only the name of its level differs."""
    stream = wire.envelope(context.key.name + members[len(context.key.name) :])
    return wire.loaded(seal.SecretKey(), context.seal, stream, "a secret key")
