"""A DNS server of our own on the loopback, in a thread: it answers while a command runs its own event loop."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from quart_tenants.postgres.tenants.domains import CustomDomain

_TTL = 60


class NameServer:
    """What it answers for TXT records.

    Attributes:
        address: For `TENANTS_DNS_SERVERS`.
        records: The texts at each name. A name that is not there does not exist.
        failures: Answered instead, such as SERVFAIL; None for no answer at all.
        on_question: Called with each name before it is answered, in the server's thread.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address = "{}:{}".format(*listener.getsockname())
        self.records: dict[str, list[str]] = {}
        self.failures: dict[str, dns.rcode.Rcode | None] = {}
        self.on_question: Callable[[str], object] = lambda name: None

    def prove(self, claim: CustomDomain) -> None:
        """Do what the domain's owner does: make the record."""
        self.records[claim.record_name] = ["v=spf1 -all", claim.record_value]

    def run(self) -> None:
        """Answer until an empty message comes."""
        while True:
            message, peer = self._listener.recvfrom(4096)
            if not message:
                return
            question = dns.message.from_wire(message)
            name = question.question[0].name.to_text(omit_final_dot=True)
            self.on_question(name)
            answer = self._answer(question, name)
            if answer is not None:
                self._listener.sendto(answer.to_wire(), peer)

    def _answer(self, question: dns.message.Message, name: str) -> dns.message.Message | None:
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        failure = self.failures.get(name, dns.rcode.NOERROR)
        if failure is None:
            return None
        answer.set_rcode(failure)
        if name not in self.records and failure == dns.rcode.NOERROR:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if self.records.get(name):
            texts = [f'"{text}"' for text in self.records[name]]
            answer.answer.append(dns.rrset.from_text_list(question.question[0].name, _TTL, "IN", "TXT", texts))
        return answer


@contextmanager
def run_name_server() -> Iterator[NameServer]:
    """Serve DNS on a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        server = NameServer(listener)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            listener.sendto(b"", listener.getsockname())
            thread.join()
