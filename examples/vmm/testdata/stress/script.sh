# Runs in the directory of programs $1, works in the empty directory $2, and
# prints the same wherever it runs. Programs of its own run beside one another.
bin=$1
cd "$2" || exit
# A C library and Go's runtime choose the last bits of sin and exp by whether a
# processor has fused multiply-add.
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4 GODEBUG=cpu.fma=off LC_ALL=C

for p in plain vector goprog; do
	("$bin/$p" >$p.out 2>&1; echo "$p: status $?" >>$p.out) &
done
for p in strconv math; do
	("$bin/$p.test" -test.short -test.v -test.skip 'Test(Fp|IsPrint|IsGraphic)$' >$p.all 2>&1; s=$?
	sed 's/ (.*s)$//' $p.all >$p.out; echo "$p: status $s" >>$p.out) &
done
# Go's compiler and linker: with paths that are the same everywhere, so are the
# bytes of what they make. Without HOME they count nothing in files there.
ln -s "$bin" programs
(
	unset HOME XDG_CONFIG_HOME
	export GOROOT=/go
	cfg=programs/importcfg
	programs/compile -p main -complete -c=4 -trimpath "$PWD" -importcfg $cfg -buildid built -pack -o built.a programs/built.go &&
	programs/link -importcfg $cfg -buildid built -o built built.a &&
	sha256sum built.a built && ./built
	echo "built: status $?"
) >built.out 2>&1 &

# Files, hashes and packers, on disk.
sha256sum <"$bin/goprog"
md5sum <"$bin/plain"
for i in 1 2 3 4; do
	(dd if="$bin/goprog" of=part$i bs=50000 skip=$((i * 10)) count=$((i + 2)) conv=fsync 2>/dev/null
	gzip -k -$((i * 2)) part$i && gunzip -c part$i.gz | cmp - part$i && echo "part$i is whole" >part$i.said) &
done
wait
cat part?.said
for i in 1 2 3 4; do
	sha512sum part$i
	gzip -c <part$i | sha1sum
done
bzip2 -c part1 | tee part1.bz2 | md5sum
bunzip2 -c part1.bz2 | cmp - part1 && echo bunzip2
mkdir tree tree/a tree/a/b copy
for i in 1 2 3 4 5 6 7 8 9 10; do seq $((i * 1500)) $((i * 1700 + 1500)) >tree/a/b/x$i; done
ln -s a/b tree/link
ln tree/a/b/x1 tree/hard
tar cf - tree | tar xf - -C copy
diff -r tree copy/tree && (cd copy && find . | sort && readlink tree/link && stat -c '%h %s' tree/hard)
dd if=tree/a/b/x2 of=holes bs=1000 seek=500 conv=fsync 2>/dev/null
stat -c %s holes
sha256sum holes
rm -r copy/tree/a && find copy | sort
sync

# Text and numbers.
seq 15000 | awk '{ print ($1 * 7919) % 15013, $1 }' >numbers
sort -n numbers | md5sum
sort -r numbers | uniq -c | md5sum
sort -k2,2nr -u numbers | head -3
tr 0-9 a-j <numbers | grep -E '^(a|b[c-e]+)' | sed 's/\(.\)b\(.*\)$/\2-\1/' | sha1sum
od -A x -t x1 part2 | md5sum
base64 part3 | cut -c 5-60 | rev | md5sum
awk '
# Debian builds busybox without the C library of mathematics.
function root(x, r, i) { r = x; for (i = 0; i < 30; i++) r = (r + x / r) / 2; return r }
function sine(x, s, t, i) { t = x; for (i = 1; i < 20; i++) { s += t; t *= -x * x / (2 * i) / (2 * i + 1) } return s }
BEGIN {
	for (i = 1; i < 1500; i++) {
		s += sine(i % 7 / 3) * root(i); t += 1 / i / (i + 0.5); u = (u * 69069 + i) % 4294967296
		count[u % 97]++
	}
	printf "%.17g %.17g %.0f %d %d %e\n", s, t, u, count[13], int(-7.9), 1 / 3
	printf "%5.2f|%-8s|%08.3f|%x|%c\n", 1e3 / 7, substr("substring", 4), -3.14159, 48879, 65
}'
i=0 n=1
while [ $i -lt 3000 ]; do
	n=$(((n * 1103515245 + 12345) % 2147483648)) i=$((i + 1))
	case $n in *77*) m=$((m ^ n)) ;; esac
done
echo $n $m $((-7 / 2)) $((-7 % 3)) $((1 << 62)) $((0x7fffffffffffffff + 1))
echo '50k 2v p 3 7 ^ 11 % p 16o 123456789012345678901234567890 p' | dc
for i in 1 2 3 4 5 6 7 8; do (usleep $((i * 7 % 5))000; seq $i $((i + 50)) | sort -n | tail -1) & done | sort
wait

cat plain.out vector.out goprog.out strconv.out math.out built.out
