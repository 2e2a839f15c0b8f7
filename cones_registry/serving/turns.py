"""Whose request is drawn next: callers take turns, and with each caller their users do."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cones_registry.serving.batching import SharedSettings, Ticket

_Users = OrderedDict[str, deque["Ticket"]]


class Turns:
    """Tickets that wait. Not safe to share between threads: the batcher holds its lock.

    Who asks under many names gets no more turns for it: names take turns within their caller's.
    """

    def __init__(self) -> None:
        # Callers, and users of each, in the order of their turns; tickets oldest first.
        self._callers: OrderedDict[str, _Users] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Ticket]:
        for users in self._callers.values():
            for queue in users.values():
                yield from queue

    def add(self, ticket: Ticket) -> None:
        """Put a ticket behind those of its user."""
        users = self._callers.setdefault(ticket.caller, OrderedDict())
        users.setdefault(ticket.owner, deque()).append(ticket)
        self._count += 1

    def first(self) -> Ticket:
        """The ticket whose turn it is."""
        return next(iter(self))

    def take(self, settings: SharedSettings) -> Ticket | None:
        """Take the next ticket with these settings; its caller and user go behind the others."""
        for caller, users in self._callers.items():
            for user, queue in users.items():
                ticket = next((each for each in queue if each.settings == settings), None)
                if ticket is not None:
                    queue.remove(ticket)
                    self._count -= 1
                    self._had_a_turn(caller, user)
                    return ticket
        return None

    def drop_unwanted(self) -> None:
        """Forget the tickets that nobody waits for."""
        wanted = [ticket for ticket in self if ticket.is_wanted]
        if len(wanted) == self._count:
            return
        self.clear()
        for ticket in wanted:
            self.add(ticket)

    def clear(self) -> None:
        """Forget all tickets."""
        self._callers.clear()
        self._count = 0

    def _had_a_turn(self, caller: str, user: str) -> None:
        users = self._callers[caller]
        if users[user]:
            users.move_to_end(user)
        else:
            del users[user]
        if users:
            self._callers.move_to_end(caller)
        else:
            del self._callers[caller]
