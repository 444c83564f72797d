// Package rootfs makes the file tree that a run sees: a read-only root of our own with the system's programs bound into it,
// a volume of limited size for everything that can be written, a fresh /proc and a /dev of five harmless devices.
//
// It owns the choice of what of the machine is visible. Nothing of /home, /root, /var, /run or /etc is, but the few files
// of /etc that programs need to start; whatever else a run shall read is named by the caller, path by path.
//
// Trees are opened as detached mounts first (Entry.Open, NewVolume) and attached afterwards (Build). So a privileged agent
// can open what the run's own user could not reach by path, such as an interpreter below a folder of mode 0700, and hand it
// over as a descriptor; an unprivileged one opens in the stage, with no more rights than its own user has.
//
// Build pivots into the new root before it attaches anything, so no path is resolved in the machine's tree and no symbolic
// link can lead there. It runs once, in a mount namespace of its own, and leaves that namespace useless when it fails:
// the caller ends the process.
package rootfs
