"""kamailio in front of the gateway: a PBX with a registrar, or the edge that phones reach by TLS."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from tests.peers import LOOPBACK, Program, free_udp_port, need
from tests.softphone import free_tcp_port

USER, PASSWORD = "1000", "a password of the tests"
CONFIG = """\
debug=2
log_stderror=yes
fork=no
children=1
listen=udp:{address}:{port}
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "auth.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "xlog.so"
modparam("rr", "enable_full_lr", 1)

request_route {{
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("{address}", "{password}", "0")) {{
            www_challenge("{address}", "1");
            exit;
        }}
        xlog("L_NOTICE", "bound $aU\\n");
        save("location");
        exit;
    }}
    if (has_totag()) {{
        if (!loose_route()) {{
            sl_send_reply("404", "No route");
            exit;
        }}
        if (is_method("BYE")) xlog("L_NOTICE", "passed BYE\\n");
        t_relay();
        exit;
    }}
    if (is_method("CANCEL")) {{
        if (t_check_trans()) t_relay();
        exit;
    }}
    record_route();
    if (!lookup("location")) {{
        sl_send_reply("404", "Nobody there");
        exit;
    }}
    t_relay();
}}
"""


EDGE = """\
debug=2
log_stderror=yes
children=1
enable_tls=yes
tcp_children=1
listen=udp:{address}:{port}
listen=tls:{address}:{tls_port}
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "nathelper.so"
loadmodule "tls.so"
loadmodule "xlog.so"
modparam("rr", "enable_full_lr", 1)
modparam("tls", "tls_method", "TLSv1.2+")
modparam("tls", "private_key", "{key}")
modparam("tls", "certificate", "{cert}")
modparam("tls", "ca_list", "{cert}")

request_route {{
    if (has_totag()) {{
        if (!loose_route()) {{
            sl_send_reply("404", "No route");
            exit;
        }}
        handle_ruri_alias();
        if (is_method("INVITE")) add_contact_alias();
        xlog("L_NOTICE", "passed $rm from $pr\\n");
        t_relay();
        exit;
    }}
    if (is_method("CANCEL")) {{
        if (t_check_trans()) t_relay();
        exit;
    }}
    add_contact_alias();
    record_route();
    $du = "sip:{address}:{behind};transport={transport}";
    t_relay();
}}
"""


class Kamailio(Program):
    """One PBX; its user USER may register."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_udp_port()
        config = CONFIG.format(address=LOOPBACK, port=self.port, modules=_modules(), password=PASSWORD)
        super().__init__(_command(folder, config), folder, dict(os.environ))


class TlsEdge(Program):
    """A proxy that phones reach by TLS, in front of a gateway at `behind`; it stays in the path."""

    def __init__(self, folder: Path, certificate: tuple[Path, Path], behind: int, transport: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        modules = _modules()
        if not (modules / "tls.so").exists():
            pytest.skip("kamailio has no tls.so (Debian package kamailio-tls-modules)")
        self.port, self.tls_port = free_udp_port(), free_tcp_port()
        cert, key = certificate
        config = EDGE.format(
            address=LOOPBACK, port=self.port, tls_port=self.tls_port, modules=modules,
            cert=cert, key=key, behind=behind, transport=transport,
        )  # fmt: skip
        super().__init__(_command(folder, config), folder, dict(os.environ))
        _until_listening(self.tls_port)


def _modules() -> Path:
    need("kamailio", "kamailio")
    folders = (Path("/usr/lib/x86_64-linux-gnu/kamailio/modules"), Path("/usr/lib/kamailio/modules"))
    return next(path for path in folders if path.is_dir())


def _command(folder: Path, config: str) -> list[str]:
    file = folder / "kamailio.cfg"
    file.write_text(config)
    command = [need("kamailio", "kamailio"), "-f", str(file), "-DD", "-E", "-m", "64", "-M", "8"]
    return [*command, "-Y", str(folder), "-P", str(folder / "pid")]


def _until_listening(port: int, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((LOOPBACK, port), 1.0).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "kamailio does not listen"
            time.sleep(0.05)
