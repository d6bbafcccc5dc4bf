"""Reads pickles of torch as data: containers, strings, and views of storages.

A small interpreter knows the opcodes of pickles. It imports nothing and calls nothing, and needs no
torch. Classes and functions that tensors do not need are only names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from clip_jax.weights.formats.raw import BadFileError, UnreadableError, check_shape, is_count

MAX_OPCODES = 500_000
_DICTS = ("collections OrderedDict", "collections defaultdict", "builtins dict")
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETERS = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")


class Storage(NamedTuple):
    """A storage of a tensor's values in an archive.

    It has the name of its class, its member of the archive and its number of elements.
    """

    kind: str
    key: str
    numel: int


class TensorView(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(str):
    """The name of a class or function; nothing is imported for it."""


class Object:
    """An instance of a class of which only the name is known."""

    def __init__(self, kind: Any) -> None:
        if not isinstance(kind, _Global | Object):
            raise TypeError
        self.kind: str = kind.kind if isinstance(kind, Object) else kind
        self.state: dict[str, Any] = {}


class Opaque(Object):
    """The result of a call to a function of which only the name is known."""


def _call(function: Any, args: Any) -> Any:
    """Returns the result of a call: a tensor, a dictionary, or an `Opaque`."""
    if isinstance(function, Object):  # a method or an instance, whose result is unknown
        return Opaque(function.kind)
    if not isinstance(function, _Global) or not isinstance(args, tuple):
        raise TypeError
    if function in _DICTS:
        return {}
    if function in _PARAMETERS:
        return args[0]
    if function != _TENSOR:
        return Opaque(function)
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, Storage) or not is_count(offset):
        raise TypeError
    if not isinstance(strides, tuple) or not all(map(is_count, strides)):
        raise TypeError
    if len(check_shape("a tensor", shape)) != len(strides):
        raise ValueError
    return TensorView(storage, offset, shape, strides)


def _storage(persistent_id: Any) -> Storage:
    if isinstance(persistent_id, tuple) and persistent_id[:1] == ("module",):
        raise UnreadableError("it is a pickled module: save its state_dict()")
    # before 1.6 torch added a view of another storage, which is None in its own files
    kind, storage, key, _, numel, *view = persistent_id
    if any(view) or len(view) > 1:
        raise UnreadableError("its storages are parts of others: save it again with a newer torch")
    if kind != "storage" or not isinstance(storage, _Global) or not isinstance(key, str):
        raise TypeError
    if not is_count(numel):
        raise ValueError
    return Storage(str(storage), key, numel)


def _set_items(target: Any, keys: list[Any], values: list[Any]) -> None:
    if isinstance(target, Object):
        return  # the items of unknown objects are not needed
    if type(target) is not dict:
        raise TypeError
    # tensors have names; and the hash of a deep tuple has no end
    target.update((k, v) for k, v in zip(keys, values, strict=True) if type(k) is str)


def parse(pickle: bytes | BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Returns the value of a pickle: plain containers, `TensorView`s, `Object`s and `Opaque`s.

    Values that no tensor needs are left out: numbers in lists, bytes, items of unknown objects.

    Args:
      pickle: the pickle, or a file that is read up to its end.
      storages: receives the storages that the pickle names, by their keys.

    Raises:
      BadFileError: it is too long, or has an opcode that is not known.
      LookupError, TypeError, ValueError, ArithmeticError, AttributeError: it is broken.
    """
    machine = _Machine({} if storages is None else storages)
    opcodes: Iterator[tuple[Any, Any, Any]] = pickletools.genops(pickle)
    for count, (opcode, argument, _) in enumerate(opcodes):
        if count == MAX_OPCODES:
            raise BadFileError("its data.pkl is longer than any model's")
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.execute(opcode.name, argument)
    raise ValueError


# Opcodes that push their argument, a value that is not needed, or nothing at all.
_PUSH = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_PUSH_NONE = frozenset(
    (
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING"),
        *("NONE", "NEWTRUE", "NEWFALSE"),
    )
)
_IGNORE = frozenset(("PROTO", "FRAME"))


class _Machine:
    """The stack machine of pickles."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Any] = []
        self._storages = storages
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def execute(self, name: str, argument: Any) -> None:
        """Executes one opcode."""
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _PUSH_NONE:
            self.stack.append(None)
        elif name not in _IGNORE and not (
            self._memorize(name, argument) or self._collect(name) or self._make(name, argument)
        ):
            raise UnreadableError(
                f"its data.pkl has the opcode {name}: open it with torch and save it again, "
                "torch.save(torch.load(FILE), NEW)"
            )

    def _pop_to_mark(self) -> list[Any]:
        at = self._marks.pop()
        if at > len(self.stack):
            raise IndexError
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def _memorize(self, name: str, argument: Any) -> bool:
        """Executes opcodes of the memo; False for others."""
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.stack.append(self._memo[argument])
            case _:
                return False
        return True

    def _collect(self, name: str) -> bool:
        """Executes opcodes of containers; False for others."""
        stack = self.stack
        match name:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                first = len(stack) - int(name[-1])
                stack[first:] = [tuple(stack[first:])]
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "FROZENSET":
                self._pop_to_mark()
                stack.append([])
            case "APPEND":
                stack.pop()  # the items of lists are not needed
            case "APPENDS" | "ADDITEMS":
                self._pop_to_mark()
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key], [value])
            case "SETITEMS":
                items = self._pop_to_mark()
                _set_items(stack[-1], items[::2], items[1::2])
            case _:
                return False
        return True

    def _make(self, name: str, argument: Any) -> bool:
        """Executes opcodes of classes, functions and objects; False for others."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(_Global(argument))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if type(attribute) is not str or type(module) is not str:
                    raise TypeError
                stack.append(_Global(f"{module} {attribute}"))
            case "BINPERSID":
                storage = _storage(stack.pop())
                self._storages[storage.key] = storage
                stack.append(storage)
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_call(function, args))
            case "NEWOBJ":
                stack.pop()
                stack.append(Object(stack.pop()))
            case "NEWOBJ_EX":
                del stack[-2:]
                stack.append(Object(stack.pop()))
            case "BUILD":
                state = stack.pop()
                target = stack[-1]
                # the state of a dictionary is its _metadata, and not needed
                if isinstance(target, Object) and type(state) is dict:
                    target.state = state
                elif isinstance(target, Object) and target.kind.startswith("__torch__"):
                    raise TypeError  # a module of TorchScript has its attributes in a dict
            case _:
                return False
        return True
