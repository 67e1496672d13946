#!/usr/bin/env bash
# The first process of a host, which `unshare` starts in namespaces of its own; when it dies, all of the host does.
#
#     boot.sh NAME FILES FOLDER…
#
# In: the host's name, a folder of files to put on its disk, the machine's folders that it needs to see. Out: a line
# "up PID" on stdout once sshd listens, with the machine's number of this process. The network cable is plugged in later.
set -euo pipefail
name=$1 files=$2
shift 2
read -r pid _ </proc/self/stat # before /proc is the host's own

# The disk: what the machine has can be read, what is written stays here and goes with the host.
disk=/media
root=$disk/root
mount -t tmpfs "disk-of-$name" $disk
mkdir $root
show() {
    local written
    written=$(mktemp -d $disk/written-XXXX)
    mkdir "$written/upper" "$written/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$written/upper,workdir=$written/work" "$root$1"
}
show /
for folder in "$@"; do # one below another file system is not seen through the root
    [ "$(stat -c %d "$folder")" = "$(stat -c %d /)" ] || show "$folder"
done
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount --rbind /dev $root/dev
mount -t tmpfs shm $root/dev/shm
rm -rf $root/root/.ssh
cp -R "$files/." $root/
mkdir -p $root/run/sshd $root/old
cd $root
pivot_root . old
umount -l /old
rmdir /old

hostname "$name"
ip link set lo up
/usr/sbin/sshd -E /var/log/sshd.log
sleep infinity &
echo "up $pid"
wait $! # and bury what loses its parent
