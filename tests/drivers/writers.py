"""Writers through libpq, by psycopg2 and psycopg 3: each does what docs/routing.md asks of a driver, and tells what it was told.

writers.py DRIVER HOSTS PORTS SECONDS: one insert every ten milliseconds; one line at the end.
"""

import sys
import time
from collections import Counter

driver, hosts, ports, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
DSN = (
    f"host={hosts} port={ports} user=postgres password=demo dbname=postgres target_session_attrs=read-write"
    " connect_timeout=2 tcp_user_timeout=3000 keepalives_idle=3"
)
if driver == "psycopg2":
    import psycopg2 as lib

    state = lambda error: error.pgcode
else:
    import psycopg as lib

    state = lambda error: error.sqlstate

told, acknowledged, unknown, gap = Counter(), 0, 0, 0.0
session, key, last = None, 0, time.monotonic()
end = last + seconds
while time.monotonic() < end:
    key += 1
    # The same key again until it is known to be there: what was lost after COMMIT is repeated and does no harm.
    while True:
        try:
            if session is None or session.closed:
                session = lib.connect(DSN)
            with session.cursor() as cursor:
                cursor.execute("INSERT INTO drivers VALUES (%s, %s) ON CONFLICT DO NOTHING", (driver, key))
            session.commit()
            break
        except lib.Error as error:
            if session is None:
                told["connect"] += 1
            else:
                told[state(error) or "connection lost"] += 1
                session.close()
                session = None
            time.sleep(0.002)
    now = time.monotonic()
    # What the first connection takes is the program's own start.
    acknowledged, gap, last = acknowledged + 1, 0.0 if key == 1 else max(gap, now - last), now
    time.sleep(0.01)
print(f"{driver}: {acknowledged} acknowledged, longest pause {gap * 1000:.0f} ms, told {dict(told)}")
