#!/bin/busybox sh
# shellcheck shell=dash
# The images of this run; from no registry.
set -eu
for archive in /usr/local/share/node/*.tar /data/*.tar; do ctr -n k8s.io images import --local "$archive"; done
