'use strict';
'require fs';
'require poll';
'require ui';
'require view';

/* What the daemon says is shown as it says it; the daemon's own command is asked, since there is
   no ubus in it.  A router takes a second or so to start that command: so every ten seconds. */

const PROGRAM = '/usr/bin/pptp-nat';
const EXAMINE = [ 'doctor', '--config', '/var/etc/pptp-nat.toml' ];
const SECONDS = 10;
const LINES = 12;

const STATES = {
	idle: _('idle'),
	requested: _('asked for'),
	answered: _('answered'),
	up: _('up'),
	clearing: _('ending'),
	gone: _('over')
};

function ask(...words) {
	return fs.exec(PROGRAM, words).then(
		done => ({ code: done.code, text: done.stdout || '', error: (done.stderr || '').trim() }),
		error => ({ code: -1, text: '', error: error.message || String(error) })
	);
}

function askJSON(...words) {
	return ask(...words, '-o', 'json').then(told => {
		try {
			return Object.assign(told, { value: JSON.parse(told.text) });
		} catch (error) {
			return Object.assign(told, { value: null, error: told.error || error.message });
		}
	});
}

function span(seconds) {
	const whole = Math.max(0, Math.floor(seconds));
	const parts = [
		[ Math.floor(whole / 86400), 'd' ],
		[ Math.floor(whole / 3600) % 24, 'h' ],
		[ Math.floor(whole / 60) % 60, 'min' ],
		[ whole % 60, 's' ]
	];
	const first = parts.findIndex(part => part[0] > 0);
	return (first < 0 ? parts.slice(-1) : parts.slice(first, first + 2))
		.map(part => part.join(' ')).join(' ');
}

function octets(number) {
	const units = [ 'B', 'KiB', 'MiB', 'GiB', 'TiB' ];
	let at = 0;
	for (; number >= 1024 && at < units.length - 1; at++)
		number /= 1024;
	return '%s %s'.format(at ? number.toFixed(1) : String(number), units[at]);
}

function side(end) {
	return end.call_id === null ? end.address : '%s #%d'.format(end.address, end.call_id);
}

function carried(call) {
	const there = call.counters && call.counters.to_remote, here = call.counters && call.counters.to_inside;
	if (!there || !here)
		return '-';
	return '↑\u00a0%s ↓\u00a0%s'.format(octets(there.bytes), octets(here.bytes));
}

function state(call, now) {
	const name = STATES[call.state] || call.state;
	return call.state == 'up' && call.up_since != null
		? _('%s for %s').format(name, span(now - call.up_since))
		: name;
}

return view.extend({
	load() {
		return this.look();
	},

	look() {
		return Promise.all([
			askJSON('status'),
			askJSON('list'),
			fs.exec('/sbin/logread', [ '-l', '200', '-e', 'pptp-nat' ]).then(done => done.stdout || '', () => '')
		]);
	},

	render(found) {
		const page = E('div', {}, [
			E('h2', {}, [ _('PPTP NAT') ]),
			E('div', { 'class': 'cbi-map-descr' }, [
				_('Calls of PPTP clients behind this router, each with the number that its server sees.')
			]),
			E('div', { 'id': 'pptp-nat-daemon' }),
			E('h3', {}, [ _('Calls') ]),
			E('div', { 'id': 'pptp-nat-calls' }),
			E('h3', {}, [ _('What happened last') ]),
			E('pre', { 'id': 'pptp-nat-log', 'style': 'overflow-x: auto' }),
			E('h3', {}, [ _('Is anything in the way?') ]),
			E('p', {}, [
				E('button', {
					'class': 'cbi-button cbi-button-action',
					'click': ui.createHandlerFn(this, 'examine')
				}, [ _('Look at this router') ])
			]),
			E('pre', { 'id': 'pptp-nat-findings' })
		]);
		this.page = page;
		this.show(found);
		poll.add(() => this.look().then(fresh => this.show(fresh)), SECONDS);
		return page;
	},

	part(name) {
		return this.page.querySelector('#pptp-nat-' + name);
	},

	put(name, ...nodes) {
		this.part(name).replaceChildren(...nodes);
	},

	show(found) {
		const [ status, list, log ] = found;
		this.put('daemon', this.daemon(status));
		this.put('calls', this.calls(list.value, Date.now() / 1000));
		const lines = log.trim().split('\n').filter(line => line).slice(-LINES);
		this.put('log', document.createTextNode(lines.length ? lines.join('\n') : _('nothing yet')));
	},

	daemon(status) {
		if (status.value === null)
			return E('div', { 'class': 'alert-message warning' }, [ status.error || _('The daemon does not answer.') ]);
		const told = status.value;
		const loose = told.queues.filter(queue => !queue.bound);
		const lost = told.queues.reduce((sum, queue) => sum + (queue.dropped || 0) + (queue.user_dropped || 0), 0);
		const lines = [
			_('Version %s, running for %s.').format(told.version, span(Date.now() / 1000 - told.started)),
			_('Data path %s: %s.').format(told.datapath, told.datapath_reason),
			_('Calls up: %d. Control connections open: %d.').format(told.calls.up || 0, told.connections.open || 0)
		];
		if (told.opaque)
			lines.push(_('Control connections that pass without being understood: %d.').format(told.opaque));
		if (lost)
			lines.push(_('Packets lost in queues: %d.').format(lost));
		return E('div', { 'class': loose.length || !told.queues.length ? 'alert-message warning' : '' }, [
			...loose.map(queue => E('p', {}, [ _('Queue %d is not bound: no call can come up.').format(queue.queue) ])),
			E('p', {}, lines.flatMap((line, at) => at ? [ E('br'), line ] : [ line ]))
		]);
	},

	calls(calls, now) {
		if (calls === null)
			return E('em', {}, [ _('not known') ]);
		if (!calls.length)
			return E('em', {}, [ _('There are no calls.') ]);
		const titles = [ _('Client'), _('Seen as'), _('Server'), _('State'), _('Traffic'), '' ];
		return E('table', { 'class': 'table' }, [
			E('tr', { 'class': 'tr table-titles' }, titles.map(title => E('th', { 'class': 'th' }, [ title ]))),
			...calls.map(call => {
				const cells = [
					side(call.inside),
					side(call.external),
					side(call.remote),
					state(call, now),
					carried(call),
					E('button', {
						'class': 'cbi-button cbi-button-remove',
						'title': _('End this call'),
						'click': ui.createHandlerFn(this, 'clear', call.id)
					}, [ _('End') ])
				];
				return E('tr', { 'class': 'tr' }, cells.map((cell, at) =>
					E('td', { 'class': 'td', 'data-title': titles[at] }, [ cell ])));
			})
		]);
	},

	clear(id) {
		return ask('clear', String(id)).then(told => {
			if (told.code)
				ui.addNotification(null, E('p', {}, [ told.error ]), 'danger');
			return this.look().then(fresh => this.show(fresh));
		});
	},

	examine() {
		return ask(...EXAMINE).then(told => {
			const text = [ told.text.trim(), told.error ].filter(part => part).join('\n');
			this.put('findings', document.createTextNode(text || _('nothing found')));
		});
	},

	handleSave: null,
	handleSaveApply: null,
	handleReset: null
});
