#!/bin/sh
# majors.sh MAJOR: makes the packages of this PostgreSQL major known to apt. Debian has one major in each release; the others come from
# PostgreSQL's own archive, which Debian's postgresql-common knows how to add.
set -eu
if apt-cache show "postgresql-$1" >/dev/null 2>&1; then exit 0; fi
echo "majors: this Debian has no postgresql-$1; adding PostgreSQL's own archive"
apt-get install -y --no-install-recommends ca-certificates postgresql-common
sh /usr/share/postgresql-common/pgdg/*.sh -y
apt-cache show "postgresql-$1" >/dev/null
