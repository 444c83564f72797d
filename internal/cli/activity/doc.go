// Package activity is the commands about what happened and what could: the activity log, and the table of permissions.
//
// It reads only. What other users wrote is shown without what steers a terminal.
//
// Failure: errors of the installation come as they came.
package activity
