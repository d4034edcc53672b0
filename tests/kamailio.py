"""kamailio as the PBX in front of the gateway: registrar with digest, and a proxy that stays in the path."""

from __future__ import annotations

import os
from pathlib import Path

from tests.peers import LOOPBACK, Program, free_udp_port, need

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


class Kamailio(Program):
    """One PBX; its user USER may register."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_udp_port()
        program = need("kamailio", "kamailio")
        modules = next(
            path
            for path in (
                Path("/usr/lib/x86_64-linux-gnu/kamailio/modules"),
                Path("/usr/lib/kamailio/modules"),
            )
            if path.is_dir()
        )
        (folder / "kamailio.cfg").write_text(
            CONFIG.format(address=LOOPBACK, port=self.port, modules=modules, password=PASSWORD)
        )
        command = [program, "-f", str(folder / "kamailio.cfg"), "-DD", "-E", "-m", "64", "-M", "8"]
        command += ["-Y", str(folder), "-P", str(folder / "pid")]
        super().__init__(command, folder, dict(os.environ))
