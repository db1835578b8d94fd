/* A stub of what a LuCI view may ask of LuCI, on one page: the modules that it requires by name,
   E() and _(), and what a router would answer (ANSWERS, by command line). */

'use strict';

String.prototype.format = function(...values) {
	return this.replace(/%(s|d|%)/g, (whole, kind) => kind === '%' ? '%' : String(values.shift()));
};

const _ = text => text;

function E(tag, attributes, children) {
	const node = document.createElement(tag);
	for (const [ name, value ] of Object.entries(attributes || {})) {
		if (typeof value === 'function')
			node.addEventListener(name, value);
		else
			node.setAttribute(name, value);
	}
	for (const child of children || [])
		node.append(child);
	return node;
}

const ASKED = [];
const POLLED = [];
const MODULES = {
	fs: {
		exec(command, words) {
			const line = [ command, ...(words || []) ].join(' ');
			ASKED.push(line);
			const answer = ANSWERS[line];
			return answer ? Promise.resolve(answer) : Promise.reject(new Error(`not allowed: ${line}`));
		}
	},
	poll: { add: (work, seconds) => POLLED.push([ work, seconds ]) },
	ui: {
		createHandlerFn: (self, name, ...words) => () => self[name](...words),
		addNotification: (title, node) => document.body.prepend(node)
	},
	view: { extend: methods => Object.assign(Object.create({}), methods) },
	'tools.widgets': { NetworkSelect: 'NetworkSelect' }
};

/* form: sections and options become elements that a test can look at. */
class Option {
	constructor(kind, name, title, description) {
		Object.assign(this, { kind, name, title, description, values: [] });
	}
	value(key, label) { this.values.push([ key, label || key ]); }
	depends() {}
}
class Section {
	constructor(name, title) { Object.assign(this, { name, title, options: [] }); }
	option(kind, name, title, description) {
		this.options.push(new Option(kind, name, title, description));
		return this.options.at(-1);
	}
}
class FormMap {
	constructor(config, title, description) { Object.assign(this, { config, title, description, sections: [] }); }
	section(kind, name, type, title) {
		this.sections.push(new Section(name, title));
		return this.sections.at(-1);
	}
	render() {
		return E('div', { 'data-config': this.config }, [
			E('h2', {}, [ this.title ]), E('p', {}, [ this.description ]),
			...this.sections.map(section => E('fieldset', { 'data-section': section.name }, [
				E('legend', {}, [ section.title ]),
				...section.options.map(option => E('div', {
					'data-option': `${section.name}.${option.name}`,
					'data-kind': option.kind,
					'data-type': option.datatype || ''
				}, [
					E('label', {}, [ option.title + ' ' ]),
					option.values.length
						? E('select', {}, option.values.map(([ key, label ]) => E('option', { value: key }, [ label ])))
						: E('input', { placeholder: option.placeholder || '' }, []),
					E('small', {}, [ option.description || '' ])
				]))
			]))
		]);
	}
}
MODULES.form = {
	Map: FormMap, NamedSection: 'NamedSection', Flag: 'Flag', Value: 'Value',
	ListValue: 'ListValue', DynamicList: 'DynamicList'
};

/* LuCI's loader: each 'require x as y' names an argument of the function that the file is. */
function open(source) {
	const names = [], values = [];
	for (const [ , module, name ] of source.matchAll(/^'require ([\w.]+)(?: as (\w+))?';$/gm)) {
		names.push(name || module);
		values.push(MODULES[module]);
	}
	return new Function(...names, 'E', '_', source)(...values, E, _);
}

async function main() {
	const view = open(SOURCE);
	document.body.append(await view.render(view.load ? await view.load() : undefined));
	for (const selector of CLICKS) {
		document.querySelector(selector).click();
		await new Promise(done => setTimeout(done, 20));
	}
	for (const [ work ] of POLLED)
		await work();
	document.body.append(E('pre', { id: 'asked' }, [ ASKED.join('\n') ]));
	document.body.append(E('pre', { id: 'seconds' }, [ POLLED.map(each => each[1]).join(' ') ]));
}

main().catch(error => document.body.append(E('pre', { id: 'failed' }, [ String(error.stack) ])));
