#!/bin/sh
# The initramfs runs this; from here on it is Debian's systemd.
exec /usr/lib/systemd/systemd
