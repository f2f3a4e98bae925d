#!/usr/bin/env bash
# Runs the tests of the CPU backend's AVX-512 path on a machine without AVX-512: in a small Linux on an emulated CPU.
#
#   bash scripts/test_avx512_emulated.sh [TRIALS]     TRIALS of the determinism test, 60 if not said
#
# Every instruction is emulated on one core, so this takes tens of minutes and says nothing about speed. It needs Debian or
# Ubuntu with the emulator (apt-get install --no-install-recommends bochs bochs-term) and no root; a kernel and the tools that
# make a boot image are fetched from the distribution into the user's cache. docs/decisions/203 says what it proves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
repo="$PWD"
trials="${1:-60}"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pagoda/test/avx512"
limit_seconds=10800

for command in bochs apt-get dpkg; do
    if ! command -v "$command" > /dev/null; then
        echo "needs $command: apt-get install --no-install-recommends bochs bochs-term" >&2
        exit 2
    fi
done

# What goes into the boot image, and what makes it. Unpacked, not installed.
if [ ! -e "$cache/ready" ]; then
    rm -rf "$cache"
    mkdir -p "$cache/packages"
    kernel="$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *//p' | head -1)"
    (cd "$cache/packages" && apt-get download "$kernel" busybox-static isolinux syslinux-common genisoimage cpio)
    for package in "$cache"/packages/*.deb; do
        dpkg -x "$package" "$cache/unpacked"
    done
    rm -rf "$cache/packages"
    touch "$cache/ready"
fi
tools="$cache/unpacked"

work="$(mktemp -d)"
machine=""
stop() {
    if [ -n "$machine" ]; then
        kill -KILL "$machine" 2> /dev/null || true # the emulator's debugger catches what it can
    fi
    rm -rf "$work"
}
trap stop EXIT

tests=(--test ops_match_the_reference --test bits_do_not_depend_on_the_batch --test sampling_keeps_the_contract
    --test ops_allocate_nothing --test golden_logits --test runner --test weight_formats --test determinism)
${CARGO:-cargo} test --profile ci --workspace "${tests[@]}" --no-run 2>&1 | tee "$work/build"
mapfile -t binaries < <(sed -n 's/.*Executable .*(\(.*\))$/\1/p' "$work/build")
[ "${#binaries[@]}" -eq 8 ] || { echo "expected 8 test binaries, found ${#binaries[@]}" >&2; exit 1; }

# The guest's files: busybox, the tests with their libraries, the tiny model at the path where its test looks for it.
root="$work/root"
mkdir -p "$root"/{bin,dev,proc,tmp,tests} "$root$repo/models" "$root$repo/crates/pagoda-model"
cp -r models/tiny "$root$repo/models/"
cp "$tools"/bin/busybox "$root/bin/"
for applet in sh mount echo cat cut grep poweroff sleep dmesg tail; do
    ln -s busybox "$root/bin/$applet"
done
for binary in "${binaries[@]}"; do
    name="$(basename "$binary")"
    strip -o "$root/tests/${name%-*}" "$binary"
    ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -Lu "$library" "$root$library"
    done
done
cat > "$root/init" << INIT
#!/bin/sh
mount -t devtmpfs none /dev; mount -t proc none /proc
cd /tmp
export PAGODA_TEST_ISA=AVX-512 PAGODA_TEST_TRIALS=$trials PAGODA_SEED=${PAGODA_SEED:-$RANDOM}
echo "the CPU has: \$(grep -m1 -o 'avx512.*' /proc/cpuinfo)"
for test in golden_logits runner sampling_keeps_the_contract ops_allocate_nothing weight_formats \\
    bits_do_not_depend_on_the_batch ops_match_the_reference determinism; do
    names=""
    [ \$test = determinism ] && names="a_thousand one_unit"
    /tests/\$test --test-threads=1 --nocapture \$names 2>&1
    echo "== \$test: exit code \$?, \$(cut -d' ' -f1 /proc/uptime) s of the guest's clock"
done
echo "== end"
sleep 1
poweroff -f
INIT
chmod +x "$root/init"

# A CD image: boot loader, kernel, the files above. Bochs 2.7 gives the sizes of XSAVEC's areas wrongly and Linux would turn
# AVX off for it, hence clearcpuid.
disc="$work/disc"
mkdir -p "$disc/isolinux"
(cd "$root" && find . | "$tools/bin/cpio" -o -H newc --quiet | gzip -1) > "$disc/initrd"
cp "$tools"/boot/vmlinuz-* "$disc/vmlinuz"
cp "$tools/usr/lib/ISOLINUX/isolinux.bin" "$tools/usr/lib/syslinux/modules/bios/ldlinux.c32" "$disc/isolinux/"
cat > "$disc/isolinux/isolinux.cfg" << 'CONFIG'
default test
prompt 0
label test
 linux /vmlinuz
 initrd /initrd
 append console=ttyS0,115200 clearcpuid=xsavec,xsaves mitigations=off random.trust_cpu=on panic=-1 quiet
CONFIG
"$tools/usr/bin/genisoimage" -quiet -J -R -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$disc"

cat > "$work/bochsrc" << 'CONFIG'
plugin_ctrl: unmapped=1, biosdev=1, extfpuirq=1, serial=1, speaker=0, parallel=0
config_interface: textconfig
display_library: term
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
cpu: model=corei7_skylake_x, count=1, ips=100000000, reset_on_triple_fault=0
clock: sync=none, time0=local
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.log
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
CONFIG
# Debian's Bochs begins in its debugger; `c` lets the machine run.
echo c > "$work/start"

# The emulator draws on a pseudo-terminal of its own making, which must be read or it fills up and the machine stands still.
# What the guest prints comes over its serial line.
cd "$work"
touch serial.log
TERM=xterm nice -n 10 bochs -q -f bochsrc -rc start > screen.log 2>&1 < /dev/null &
machine=$!
terminal=""
for _ in $(seq 300); do
    terminal="$(grep -ao '/dev/pts/[0-9]*' screen.log | tail -1 || true)"
    [ -z "$terminal" ] || break
    sleep 0.1
done
[ -n "$terminal" ] || { cat screen.log >&2; echo "the emulator did not start" >&2; exit 1; }
stty -F "$terminal" raw -echo
cat "$terminal" > /dev/null 2>&1 & # ends with the emulator
timeout "$limit_seconds" tail -n +1 --pid="$machine" -f serial.log || true

tr -d '\r' < serial.log > output
if ! grep -q '^== end' output; then
    tail -c 2000 screen.log | tr -cd '[:print:]\n' >&2
    echo "the guest did not come to its end" >&2
    exit 1
fi
grep -q '^the CPU has: avx512' output || { echo "the guest has no AVX-512" >&2; exit 1; }
[ "$(grep -c '^== [a-z0-9_]*: exit code 0,' output)" -eq 8 ] || { echo "a test failed" >&2; exit 1; }
echo "all tests passed on the emulated AVX-512"
