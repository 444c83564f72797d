// Package rotate has the commands about what an installation is believed by: the keys that sign tokens (keys), and
// the roots that sign certificates (ca).
//
// It owns nothing and decides nothing: identity does, for whoever may. What cannot be taken back is asked for twice, by a flag.
package rotate
